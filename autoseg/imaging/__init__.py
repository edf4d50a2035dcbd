"""Images as arrays with their place in the world: reading, orientation, cropping, normalisation, resampling."""
