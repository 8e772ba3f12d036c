"""Label sets, SemanticKITTI trees and rosbags."""
