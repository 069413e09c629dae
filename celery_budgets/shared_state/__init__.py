"""State that processes share in Redis: leases, which expire unless their holder renews them.

Runs in each process that takes or holds a lease.
"""
