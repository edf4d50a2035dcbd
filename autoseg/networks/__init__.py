"""Networks: from a plan's topology to a torch module. Knows neither images nor files."""
