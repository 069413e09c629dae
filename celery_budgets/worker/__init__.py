"""The worker main process: the roster of calls in hand, requests, bootsteps, control."""
