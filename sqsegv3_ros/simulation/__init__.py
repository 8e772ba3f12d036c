"""A ray-cast spinning LiDAR in synthetic streets, with ground truth."""
