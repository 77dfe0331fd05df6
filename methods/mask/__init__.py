"""Masks of one thing through a clip, in three stages that can each be used alone: find, segment, track."""
