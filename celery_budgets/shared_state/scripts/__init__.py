"""The scripts by which Redis grants limits over the fleet.

See also: :mod:`celery_budgets.shared_state.limit_store`, which runs them.
"""
