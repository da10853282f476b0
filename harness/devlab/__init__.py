"""Hosts to develop with: Windows machines by Vagrant, or pretend hosts on loopback."""
