"""What processes share by Redis: leases, which expire unless their holder renews them.

Runs in each process that holds a lease or asks for one.
"""
