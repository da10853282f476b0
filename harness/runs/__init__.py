"""Runs: asked for as values, carried out on this machine or on a host, watched from anywhere."""
