"""Networks: from a plan's topology to a torch module. Independent of images and files."""
