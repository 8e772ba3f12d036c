"""Labelling of scans, SemanticKITTI trees and rosbags."""
