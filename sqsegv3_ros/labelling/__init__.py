"""Scans, trees and bags to labels."""
