"""A ray-cast spinning LiDAR in made-up streets, with ground truth."""
