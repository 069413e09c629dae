"""The configuration of an app: its settings, queues and routes, and what its broker allows.

Runs in every process that has the app. The only room that reads ``app.conf.budgets_*``.
"""
