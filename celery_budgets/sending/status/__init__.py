"""The state of all lanes as one value: what ``celery lanes status``, ``top`` and the page show.

Made in the process that asks.
"""
