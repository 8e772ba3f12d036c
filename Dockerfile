# SPDX-License-Identifier: Apache-2.0
# The node in a container:
#     docker build -t sqsegv3_ros .                       # CPU, with OpenVINO
#     docker build -t sqsegv3_ros --build-arg CUDA=1 .    # CUDA; run with --gpus all
#     docker run --rm --net=host --ipc=host sqsegv3_ros
# Further launch arguments follow the whole command:
#     docker run ... sqsegv3_ros ros2 launch sqsegv3_ros segment.launch.py input_topic:=/points
# --ipc=host: the Fast DDS profile delivers large clouds through shared memory.
ARG ROS_DISTRO=jazzy
FROM ros:${ROS_DISTRO}-ros-base

ARG CUDA=
ENV PIP_BREAK_SYSTEM_PACKAGES=1 PIP_NO_CACHE_DIR=1
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
WORKDIR /ros2_ws

# before the source, so that a change of the source installs nothing again; torch's CUDA libraries come with its wheel
# hadolint ignore=DL3008,DL3013
RUN apt-get update && apt-get install -y --no-install-recommends python3-pip && rm -rf /var/lib/apt/lists/* \
    && pip install torch && if [ -z "$CUDA" ]; then pip install openvino; fi

COPY package.xml src/sqsegv3_ros/package.xml
RUN apt-get update && rosdep update --rosdistro "$ROS_DISTRO" \
    && rosdep install --from-paths src --ignore-src -y --dependency-types exec --skip-keys python3-torch \
    && rm -rf /var/lib/apt/lists/*

COPY . src/sqsegv3_ros
RUN source "/opt/ros/$ROS_DISTRO/setup.bash" && colcon build --packages-select sqsegv3_ros

# the image's entrypoint sources /opt/ros
RUN sed -i 's#^exec #source /ros2_ws/install/setup.bash --\nexec #' /ros_entrypoint.sh
CMD ["ros2", "launch", "sqsegv3_ros", "segment.launch.py"]
