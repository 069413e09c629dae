"""The meanings of span attributes, span events and log events, for the tables of facts.py.

A test checks that exactly the names in the code are listed.
"""

from __future__ import annotations

__all__ = ["ATTRIBUTES", "LOG_EVENTS", "SPAN_EVENTS"]

ATTRIBUTES = {
    "celery_budgets.task.id": "id of the task",
    "celery_budgets.task.name": "name of the task",
    "celery_budgets.lane": "lane of the call",
    "celery_budgets.queue": "queue from which the message was received",
    "celery_budgets.worker": "name of the worker",
    "celery_budgets.attempt": "number of the attempt: 1, and one more at each retry",
    "celery_budgets.idempotency_key": "idempotency key that the caller gave, if any",
    "celery_budgets.twin": "whether a call with the same key ran in its place",
    "celery_budgets.scope": "request scope of the caller, if any",
    "celery_budgets.input_size": "size of a block's input, if the caller gave it",
    "celery_budgets.queue_wait": "time from publishing (or the ETA) to the start",
    "celery_budgets.lane.active": "calls running in the lane, including this one",
    "celery_budgets.lane.limit": "concurrency of the lane",
    "celery_budgets.global.active": "calls running in the worker, including this one",
    "celery_budgets.global.limit": "slots of the worker",
    "celery_budgets.limits": "names of its limits over the fleet, if it has any",
    "celery_budgets.limit.wait": "time for which only those kept it from its start, also aside",
    "celery_budgets.outcome": "how the call ended",
    "celery_budgets.duration": "time from the start to the end",
    "celery_budgets.time_limit.soft": "soft time limit in force",
    "celery_budgets.time_limit.hard": "hard time limit in force",
    "celery_budgets.soft_limit_exceeded": "whether the call ran longer than its soft limit",
    "celery_budgets.rss.before": "RSS of its process at the start",
    "celery_budgets.rss.after": "RSS of its process at the end",
    "celery_budgets.rss.delta": "difference of the two",
    "celery_budgets.rss.peak": "highest RSS sampled during the call",
    "celery_budgets.rss.attributed": "whether the process ran this call alone",
}

SPAN_EVENTS = {
    "acquired_slot": "the call has a slot of its lane",
    "execution_started": "the body starts",
    "execution_succeeded": "the body returned",
    "execution_failed": "the body raised, or the call was ended",
    "soft_time_limit": "the call reached its soft time limit",
    "hard_time_limit": "the call reached its hard time limit",
    "memory_warning": "the RSS of its process rose above `rss_warning`",
    "call_completed": "the call has its outcome",
}

LOG_EVENTS = {
    "budgets.acknowledged_later": "An acknowledgement could not be sent to Redis. The thread that "
    "renews deliveries sends it.",
    "budgets.all_renew": "All workers on this Redis renew their unacknowledged deliveries again.",
    "budgets.backlog_known": "The broker tells again how many messages wait for the lanes.",
    "budgets.backlog_unknown": "The broker does not tell how many messages wait for the lanes. The "
    "worker asks again until it does; calls are not affected.",
    "budgets.batch_not_revoked": "A batch ended early, and the broker did not take the request to "
    "revoke its waiting calls; they will run.",
    "budgets.begin_failed": "The watchdog could not start to measure a call. The call runs, "
    "without a watchdog.",
    "budgets.begun_unknown": "At a stop or a lost connection, a pool process reported something "
    "unreadable about which calls it has started. One call may run twice.",
    "budgets.call_ended": "A call has ended. The record has the facts of the call.",
    "budgets.call_slow": "A call has run longer than 10 s and ten times the p99 of its task, of "
    "which at least 100 calls had ended. The record says where it is. Told once per call.",
    "budgets.kill_not_kept": "Redis did not take a kill for `lanes kills`; only the worker that "
    "killed the call remembers it.",
    "budgets.kills_not_read": "`lanes kills` could not read the kills in Redis; it shows those "
    "that workers remember.",
    "budgets.call_killed": "The worker killed a call's process, or lost it.",
    "budgets.call_runs_again": "A killed call is sent again, because its task has `max_kills`.",
    "budgets.call_stopped": "The signal that stops the worker has ended the process of a call too. "
    "The call goes back to its queue.",
    "budgets.drain": "The worker stops with a known grace. The record says of a running call with "
    "what chance it ends in time, and what becomes of it: it gets the grace, is handed back to its "
    "queue now, or is left until the end because it must not run twice.",
    "budgets.leaving": "The worker was asked by `lanes drain` to take no more work, and stops when "
    "its running calls have ended.",
    "budgets.drain_failed": "A call could not be handed back at a stop. The broker delivers it "
    "again when the worker has gone.",
    "budgets.drain_leaves": "The grace of a stop is over, and a call that must not run twice still "
    "runs. Whoever kills the worker now ends it for good.",
    "budgets.supervisor_not_told": "A worker could not tell `lanes up` that it is ready. A reload "
    "waits for it.",
    "budgets.systemd_not_told": "A worker, or `lanes up`, could not tell systemd that it is ready "
    "or stops.",
    "budgets.state_not_deleted": "Redis did not delete what ended calls have saved. It expires "
    "after `budgets_progress_retention`.",
    "budgets.state_not_read": "Redis did not answer what an earlier attempt of a call has saved. "
    "The call begins from the start.",
    "budgets.state_not_saved": "Redis did not keep what a call has saved. The call runs on; its "
    "next attempt begins at what was saved before. Told once per call.",
    "budgets.cannot_terminate": "`scope.cancel(running=True)` reached a pool that cannot "
    "terminate calls (threads, solo). The call runs to its end.",
    "budgets.children_ended": "The child processes of a killed call were ended with it.",
    "budgets.children_unknown": "The processes of a killed call could not be looked up. Some may "
    "live on.",
    "budgets.concurrency_lowered": "The worker was started with fewer slots than its lanes have.",
    "budgets.consumer_timeout": "RabbitMQ would close the channel of a call that runs up to its "
    "hard limit. Raise `consumer_timeout` of the broker.",
    "budgets.drift": "An operator or a tool has changed the pool or the queues at run time. The "
    "message has the command that undoes it.",
    "budgets.drift_gone": "The pool and the queues of the worker are as at its start again.",
    "budgets.flush_failed": "A process could not export its spans when it ended.",
    "budgets.gate_closed": "Memory is above the limit: the worker admits no calls.",
    "budgets.gate_failed": "The memory gate could not be evaluated. It keeps its state.",
    "budgets.gate_lets_one_through": "No call runs and memory does not fall: the worker admits one "
    "call at a time.",
    "budgets.gate_opened": "Memory has fallen: the worker admits calls again.",
    "budgets.acknowledge_failed": "Redis did not take acknowledgements of ended calls. The "
    "worker sends it once it is connected again.",
    "budgets.hand_back_failed": "Messages could not be put back into their queue. The worker does "
    "it once it is connected again; else Redis does after the visibility timeout.",
    "budgets.message_undecodable": "A message is no JSON, or has no delivery tag. The worker "
    "moved it to the list `QUEUE.undecodable`, which no worker reads.",
    "budgets.redis_silent": "Redis has not replied for too long: the worker reconnects.",
    "budgets.redis_transport_refused": "Redis does not allow this user scripts or `BLMOVE`: the "
    "worker fetches messages as kombu does, which can lose one if the worker is killed "
    "meanwhile.",
    "budgets.handed_back": "The worker requeued a message at the broker instead of starting it.",
    "budgets.hard_time_limit": "A call reached its hard time limit; the watchdog ends it.",
    "budgets.keeper_failed": "The renewal of leases raised. It continues in 1 s.",
    "budgets.kill_is_final": "A killed call is not sent again: it was killed more often than "
    "`max_kills` allows.",
    "budgets.lane_budget_used": "A call came through the queue of another lane, whose budget the "
    "attributes of its task contradict. The lane's budget applies.",
    "budgets.lane_limit_set": "An operator changed the concurrency of a lane.",
    "budgets.lane_paused": "An operator paused a lane.",
    "budgets.lane_resumed": "An operator resumed a lane.",
    "budgets.lane_waits_for_itself": "Calls of a full lane wait by `get()` for calls of the same "
    "lane.",
    "budgets.lanes_look_failed": "The periodic check of lanes raised. The next one follows.",
    "budgets.lease_lost": "A call could not renew the lease of its idempotency key: it is stopped, "
    "and sent again. Or others have taken its places of limits over the fleet, because its "
    "process stood still for longer than a lease.",
    "budgets.lease_not_let_go": "The lease of a key could not be released. It expires by itself.",
    "budgets.lease_not_settled": "The result of a key could not be stored. A twin may run the "
    "body again.",
    "budgets.lease_not_taken": "Redis did not answer when a call tried to take its key. The call "
    "is sent again with a delay.",
    "budgets.lease_overrun": "A body ended after its lease was lost. A twin may have run too.",
    "budgets.limit_key_missing": "A block or a call names a limit with keys and gives no key. All "
    "without one share a key; told once per limit, and task or block, in each process.",
    "budgets.limits_failed": "What holds calls to limits over the fleet raised. It continues.",
    "budgets.limits_known": "Redis tells again who uses the limits over the fleet.",
    "budgets.limits_unknown": "Redis does not tell who uses the limits over the fleet. New calls "
    "with limits wait until it does, or run after one lease where `on_outage` says so.",
    "budgets.mapped_unknown": "The worker could not determine which task a `map` message runs.",
    "budgets.memory_limit": "A call reached its memory limit; its process is killed, or the "
    "exception is raised in it.",
    "budgets.memory_warning": "The RSS of the process that runs a call is above `rss_warning`.",
    "budgets.metrics_not_sent": "The OpenTelemetry collector did not take the metrics.",
    "budgets.metrics_not_served": "The metrics port is taken, or `prometheus-client` is missing.",
    "budgets.metrics_served": "The worker serves Prometheus at this address.",
    "budgets.misconfigured": "The configuration is invalid. The first use raises the error.",
    "budgets.no_exporter": "An `OTEL_*` variable requests an exporter that is not installed, "
    "unknown, or failing. Nothing is exported instead.",
    "budgets.no_sampler": "`OTEL_TRACES_SAMPLER` names a sampler that does not exist. All traces "
    "are recorded.",
    "budgets.no_flight_record": "The shared memory of a pool process could not be created. After a "
    "kill of that process less is known about its call.",
    "budgets.fleet_unknown": "Redis does not report which workers renew their deliveries, so "
    "workers that do not renew are not detected.",
    "budgets.not_renewing": "Workers on the same Redis do not renew their deliveries. While they "
    "run, only they redeliver calls, after their own visibility timeout.",
    "budgets.no_mailbox_table": "The broker cannot list the workers, so only workers that have "
    "answered before are reported as silent.",
    "budgets.no_queue": "`lanes why` counted the messages of a queue that does not exist.",
    "budgets.no_result": "`lanes why` could not read the result of a call; it goes on without.",
    "budgets.operator": "An operator did something on the page: what, to which lane or scope, who, "
    "and the status of the answer.",
    "budgets.page_connection_broke": "Who looked at the page has left in the middle of an answer.",
    "budgets.page_failed": "An answer of the page raised. The traceback follows.",
    "budgets.page_has_news": "The workers answer the page again.",
    "budgets.page_request": "A request to `lanes web`. Its address may have the token, and is not "
    "logged.",
    "budgets.page_without_news": "The workers could not be asked for the page, which goes on "
    "showing the last news and their age.",
    "budgets.peer_unreadable": "Another worker told something unreadable about its lanes.",
    "budgets.peers_not_told": "The worker could not tell others about its lanes. It tries again.",
    "budgets.pool_processes_back": "All pool processes are up again.",
    "budgets.pool_processes_missing": "No pool process takes calls, or fewer than the worker has "
    "slots, for too long.",
    "budgets.priorities_unchecked": "The broker did not answer when the queue of a lane was "
    "checked for `x-max-priority`.",
    "budgets.process_leaves": "A pool process was above `max_rss` after a call. It exits and is "
    "replaced.",
    "budgets.processes_replaced": "The gate stayed closed while no call ran, so the worker "
    "replaced its pool processes.",
    "budgets.python_memory": "This Python (3.14.0 to 3.14.4) lets processes grow to several times "
    "their size.",
    "budgets.redelivered": "The worker was frozen, or Redis unreachable, for longer than the "
    "visibility timeout, and a call that has not ended here was redelivered to another worker. "
    "The other run counts.",
    "budgets.redelivery_settled": "The broker redelivered a message whose call runs or has ended "
    "in this worker. It was not run again.",
    "budgets.renewal_back": "The worker renews its deliveries again.",
    "budgets.renewal_failed": "The worker could not renew its deliveries. It retries, and logs "
    "this once.",
    "budgets.requeued_later": "A message could not be returned to Redis. It is redelivered after "
    "the visibility timeout.",
    "budgets.request_class_failed": "A method of your `Request` class raised. The call is settled "
    "nevertheless.",
    "budgets.rerun_failed": "The broker did not take the re-run of a killed call. The kill is "
    "final.",
    "budgets.sample_rate_ignored": "`OTEL_TRACES_SAMPLER` is set, and takes precedence over "
    "`budgets_span_sample_rate`.",
    "budgets.scope_cancelled": "A request scope was cancelled, or a call was revoked because its "
    "scope is cancelled.",
    "budgets.settling_failed": "A handler, a signal receiver or the result backend failed when the "
    "worker reported a call's end. The call has its outcome nevertheless.",
    "budgets.slot_recovered": "The pool had lost a call: the worker settled it as `worker_lost` "
    "and took its slot back. It should never happen; please report it.",
    "budgets.header_malformed": "A producer has sent a deadline, an instant or a scope that cannot "
    "be read. The call runs without it.",
    "budgets.queue_abandoned": "A former default queue, which belongs to no lane, holds messages "
    "that no worker of a lane consumes.",
    "budgets.queue_undeclared": "A route or a beat entry names a queue that the app does not "
    "declare: sending to it fails.",
    "budgets.slow_start": "A pool process took over half of `worker_proc_alive_timeout` to start. "
    "A replacement that takes longer than all of it is killed, again and again.",
    "budgets.soft_time_limit": "A call reached its soft time limit.",
    "budgets.span_lost": "A killed call has no span, because the worker main process has no "
    "tracer provider.",
    "budgets.telemetry_failed": "A span, a metric or a record could not be made. The call is not "
    "affected.",
    "budgets.thread_abandoned": "A thread runs on past the hard limit of its call. The caller "
    "has the result already.",
    "budgets.throttle_failed": "A call has raised `Throttled`, and the limit could not be closed. "
    "The call comes back when the time is over.",
    "budgets.throttled": "A call has raised `Throttled`: the limit, or its key, is closed for that "
    "time over the fleet.",
    "budgets.time_limit_set": "An operator changed the time limits of a task.",
    "budgets.twin": "A call found that another call has its idempotency key.",
    "budgets.watchdog_failed": "The watchdog raised. It continues in 1 s.",
    "budgets.worker_leaves": "The worker stops with the exit code in the message.",
    "budgets.worker_started": "The worker has started, with its lanes, its concurrency, and the "
    "limits that its pool can enforce.",
}
