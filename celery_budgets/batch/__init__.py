"""Batches: thousands of calls, a few at a time, with their results in order.

Runs in the program that sends them.
"""
