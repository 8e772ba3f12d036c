"""`sqsegv3 replay`: a bag or a SemanticKITTI sequence -> its clouds on a ROS 2 topic, at their recorded pace."""

from __future__ import annotations

import argparse
from pathlib import Path

from sqsegv3_ros.errors import OperationError, UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the verb."""
    parser.add_argument(
        "source",
        type=Path,
        metavar="BAG|ROOT",
        help="ROS 1 .bag, ROS 2 bag (folder, .mcap, .db3), or SemanticKITTI root (with sequences/NN/velodyne)",
    )
    parser.add_argument("--topic", metavar="T", help="which clouds of the bag (default: the only ones)")
    parser.add_argument("--output-topic", metavar="T", help="publish here (default: as recorded; /velodyne_points)")
    parser.add_argument("--sequence", "--sequences", metavar="NN", help="which sequence of the root")
    parser.add_argument(
        "--labels",
        action=argparse.BooleanOptionalAction,
        help="a root's clouds get a field ground_truth (default: where every scan has labels)",
    )
    parser.add_argument("--rate", type=float, default=1.0, metavar="R", help="times the recorded pace (default: 1)")
    parser.add_argument("--loop", action="store_true", help="begin again at the end, until interrupted")
    parser.add_argument(
        "--clock", nargs="?", type=float, const=40.0, metavar="HZ", help="publish /clock (default: 40 times a second)"
    )
    parser.add_argument(
        "--reliable", action="store_true", default=True, help="publish reliably (default); --best-effort as drivers do"
    )
    parser.add_argument("--best-effort", dest="reliable", action="store_false", help=argparse.SUPPRESS)
    parser.add_argument(
        "--wait-for-subscribers",
        nargs="?",
        type=int,
        const=1,
        default=0,
        metavar="N",
        help="begin when N (default: 1) subscribe",
    )
    parser.add_argument(
        "--follow", metavar="T", help="hold each cloud back until the last one's stamp was seen on this topic"
    )


def run(args: argparse.Namespace) -> int:
    """Replay, then say what was published. Returns the exit code: 1 where nothing was."""
    try:
        from sqsegv3_ros.ros.replay_node import ReplaySettings, replay
    except ImportError as error:
        raise UserError(
            f"replay needs rclpy and its messages ({error}): source a ROS 2 installation, or "
            "pip install 'sqsegv3_ros[ros]'"
        ) from error
    from sqsegv3_ros.evaluation.replay import open_source

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
        print(f"replaying {len(source)} clouds of {args.source} on {topic}", flush=True)
        report = replay(source, settings)
    print(report.text(topic), flush=True)
    if not report.published and not report.interrupted:
        raise OperationError("nothing was published")
    return 0
