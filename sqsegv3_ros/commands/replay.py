# SPDX-License-Identifier: Apache-2.0
"""`sqsegv3 replay`: publish the clouds of a bag or a SemanticKITTI sequence at their recorded rate."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from sqsegv3_ros.commands.options import add_json, print_results
from sqsegv3_ros.errors import OperationError, UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    source = "ROS 1 bag (.bag), ROS 2 bag (folder, .mcap, .db3), or SemanticKITTI data set (with sequences/NN/velodyne)"
    parser.add_argument("source", type=Path, metavar="BAG|DATASET", help=source)
    parser.add_argument("--topic", metavar="T", help="topic of the bag (default: the only one with clouds)")
    parser.add_argument("--output-topic", metavar="T", help="topic to publish on (default: as recorded)")
    parser.add_argument("--sequence", "--sequences", metavar="NN", help="sequence of the data set")
    labels = "add the field ground_truth to a data set's clouds (default: if every scan has labels)"
    parser.add_argument("--labels", action=argparse.BooleanOptionalAction, help=labels)
    parser.add_argument("--rate", type=float, default=1.0, metavar="R", help="factor on the recorded rate (default: 1)")
    parser.add_argument("--loop", action="store_true", help="restart at the end, until interrupted")
    clock = "publish /clock at this rate (default: 40)"
    parser.add_argument("--clock", nargs="?", type=float, const=40.0, metavar="HZ", help=clock)
    reliable = "publish reliably (default); --best-effort: as drivers do"
    parser.add_argument("--reliable", action="store_true", default=True, help=reliable)
    parser.add_argument("--best-effort", dest="reliable", action="store_false", help=argparse.SUPPRESS)
    wait = "wait until N (default: 1) subscribers are connected"
    parser.add_argument("--wait-for-subscribers", nargs="?", type=int, const=1, default=0, metavar="N", help=wait)
    follow = "publish each cloud only after the previous one's stamp was received on this topic"
    parser.add_argument("--follow", metavar="T", help=follow)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Replay, then print what was published."""
    try:
        from sqsegv3_ros.ros.replay_node import ReplaySettings, replay
    except ImportError as error:
        raise UserError(f"replay needs ROS 2: {error}") from error
    from sqsegv3_ros.data.replay import open_source

    settings = ReplaySettings(
        topic=args.output_topic,
        rate=args.rate,
        loop=args.loop,
        clock_hz=args.clock,
        reliable=args.reliable,
        subscribers=args.wait_for_subscribers,
        follow=args.follow,
    )
    with open_source(args.source, args.topic, args.sequence, args.labels) as source:
        topic = settings.topic or source.topic
        print(f"replaying {len(source)} clouds of {args.source} on {topic}", file=sys.stderr)
        report = replay(source, settings)
    print_results(args, report.text(topic), {"topic": topic, **report.to_dict()})
    if not report.published and not report.interrupted:
        raise OperationError("nothing was published")
    return 0
