"""A compute service in memory: the guest agent over an operating system that is played.

Start at `harness.model.service`.
"""
