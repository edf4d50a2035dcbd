"""Images as arrays with their place in the world: reading, turning, cropping, scaling, resampling."""
