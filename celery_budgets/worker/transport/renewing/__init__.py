"""What a worker on Redis has in hand is renewed there, for as long as it has it.

Runs in a thread of the worker main process. Works with kombu's channels and with ours alike.
"""
