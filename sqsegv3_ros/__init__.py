"""SqueezeSegV3 for ROS 2: every point of a live LiDAR cloud gets a label."""
