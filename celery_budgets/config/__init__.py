"""The configuration of an app: its settings, queues and routes, and the limits of its broker.

Runs in every process that has the app. The only package that reads ``app.conf.budgets_*``.
"""
