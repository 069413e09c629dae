"""``budgets.call(...)``: any code as one call under the budget of a lane.

Runs in any process: web process, script, pool process. Needs no worker and no broker.
"""
