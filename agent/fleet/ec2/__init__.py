"""Machines and images at EC2."""
