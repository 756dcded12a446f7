"""Measuring on this machine: times, memory, what a call costs, and all of it for the owner of a GPU."""
