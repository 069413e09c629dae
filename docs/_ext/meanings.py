"""What the names mean that the code has only as names; the tables of facts.py take it from here.

A test holds that each name of the code is here, and no other.
"""

from __future__ import annotations

__all__ = ["ATTRIBUTES", "LOG_EVENTS", "SPAN_EVENTS"]

ATTRIBUTES = {
    "celery_budgets.task.id": "id of the task",
    "celery_budgets.task.name": "name of the task",
    "celery_budgets.lane": "lane of the call",
    "celery_budgets.queue": "queue from which the message came",
    "celery_budgets.worker": "name of the worker",
    "celery_budgets.attempt": "1, and one more at each retry",
    "celery_budgets.idempotency_key": "idempotency key that the caller gave, if any",
    "celery_budgets.twin": "whether a call with the same key ran in its place",
    "celery_budgets.scope": "request scope of the caller, if any",
    "celery_budgets.input_size": "size of a block's input, where the caller gave it",
    "celery_budgets.queue_wait": "time from publishing (or the ETA) to the start",
    "celery_budgets.lane.active": "calls running in the lane, with this one",
    "celery_budgets.lane.limit": "concurrency of the lane",
    "celery_budgets.global.active": "calls running in the worker, with this one",
    "celery_budgets.global.limit": "slots of the worker",
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
    "budgets.all_renew": "All workers on this Redis renew what they have in hand, again.",
    "budgets.batch_not_revoked": "A batch ended early, and the broker did not take the request to "
    "revoke its waiting calls; they will run.",
    "budgets.begin_failed": "The watchdog could not start to measure a call. The call runs, "
    "without a watchdog.",
    "budgets.begun_unknown": "At a stop or a lost connection, a pool process reported something "
    "unreadable about which calls it has started. One call may run twice.",
    "budgets.call_ended": "A call has ended. The record has the facts of the call.",
    "budgets.call_killed": "The worker killed a call's process, or lost it.",
    "budgets.call_runs_again": "A killed call is sent again, because its task has `max_kills`.",
    "budgets.cannot_terminate": "`scope.cancel(running=True)` reached a pool that cannot "
    "terminate calls (threads, solo). The call runs to its end.",
    "budgets.children_ended": "Processes that a killed call had started were ended with it.",
    "budgets.children_unknown": "The processes of a killed call could not be looked up. Some may "
    "live on.",
    "budgets.concurrency_lowered": "The worker was started with fewer slots than its lanes have.",
    "budgets.consumer_timeout": "RabbitMQ would close the channel of a call that runs up to its "
    "hard limit. Raise `consumer_timeout` of the broker.",
    "budgets.drift": "Somebody has changed the pool or the queues at run time. The message has "
    "the command that takes it back.",
    "budgets.drift_gone": "The worker is again as it was started.",
    "budgets.flush_failed": "Spans of a process that ends could not be sent.",
    "budgets.gate_closed": "Memory is above the limit: the worker admits no calls.",
    "budgets.gate_failed": "The memory gate could not be evaluated. It keeps its state.",
    "budgets.gate_lets_one_through": "Nothing runs and memory does not fall: the worker admits one "
    "call at a time.",
    "budgets.gate_opened": "Memory has fallen: the worker admits calls again.",
    "budgets.acknowledge_failed": "Redis could not be told that calls have ended. The worker tells "
    "it once it is connected again.",
    "budgets.hand_back_failed": "Messages could not be put back into their queue. The worker does "
    "it once it is connected again; else Redis does after the visibility timeout.",
    "budgets.message_undecodable": "A message is no JSON, or has no delivery tag. It lies in the "
    "list `QUEUE.undecodable` now, which no worker reads.",
    "budgets.redis_silent": "Redis owes a reply for too long: the worker connects anew.",
    "budgets.redis_transport_refused": "Redis does not run scripts or `BLMOVE` for this user: the "
    "worker takes messages as kombu does, which loses one where it is killed at the wrong moment.",
    "budgets.handed_back": "The worker returned a message to the broker instead of starting it.",
    "budgets.hard_time_limit": "A call reached its hard time limit; the watchdog ends it.",
    "budgets.keeper_failed": "Leases could not be renewed this time. The next try is in 1 s.",
    "budgets.kill_is_final": "A killed call is not sent again: it was killed as often as "
    "`max_kills` allows.",
    "budgets.lane_budget_used": "A call came by the queue of another lane, and what its task sets "
    "contradicts the budget of that lane. The lane's budget holds.",
    "budgets.lane_limit_set": "An operator changed the concurrency of a lane.",
    "budgets.lane_paused": "An operator paused a lane.",
    "budgets.lane_resumed": "An operator resumed a lane.",
    "budgets.lane_waits_for_itself": "Calls of a full lane wait by `get()` for calls of the same "
    "lane.",
    "budgets.lanes_look_failed": "The periodic check of lanes raised. The next one follows.",
    "budgets.lease_lost": "A call could not renew the lease of its idempotency key. The worker "
    "stops it, and it comes back.",
    "budgets.lease_not_let_go": "The lease of a key could not be released. It expires by itself.",
    "budgets.lease_not_settled": "The result of a key could not be stored. A twin may run the "
    "body again.",
    "budgets.lease_not_taken": "Redis did not answer when a call asked for its key. The call "
    "comes back later.",
    "budgets.lease_overrun": "A body ended after its lease was lost. A twin may have run too.",
    "budgets.mapped_unknown": "The worker could not tell which task a `map` message runs.",
    "budgets.memory_limit": "A call reached its memory limit; its process is killed, or the "
    "exception is raised in it.",
    "budgets.memory_warning": "The RSS of the process that runs a call is above `rss_warning`.",
    "budgets.metrics_not_sent": "The OpenTelemetry collector did not take the metrics.",
    "budgets.metrics_not_served": "The metrics port is taken, or `prometheus-client` is missing.",
    "budgets.metrics_served": "The worker answers Prometheus at this address.",
    "budgets.misconfigured": "The configuration is wrong. The first use raises the error.",
    "budgets.no_exporter": "An `OTEL_*` variable asks for an exporter that is not installed, not "
    "known, or that fails. Nothing is sent in its place.",
    "budgets.no_sampler": "`OTEL_TRACES_SAMPLER` names a sampler that is not there. All traces are "
    "kept.",
    "budgets.no_flight_record": "The shared memory of a pool process could not be made. After a "
    "kill of that process less is known of its call.",
    "budgets.fleet_unknown": "Redis does not say which workers renew what they have in hand. Those "
    "that do not are not noticed.",
    "budgets.not_renewing": "Workers on the same Redis do not renew what they have in hand. While "
    "they are there, only they hand calls out again, after their own visibility timeout.",
    "budgets.no_mailbox_table": "The broker cannot list the workers, so only workers that have "
    "answered before are reported as silent.",
    "budgets.pool_processes_back": "The pool has processes again.",
    "budgets.pool_processes_missing": "No pool process takes calls, or fewer than the worker has "
    "slots, for too long.",
    "budgets.priorities_unchecked": "The broker did not answer when the queue of a lane was "
    "checked for `x-max-priority`.",
    "budgets.process_leaves": "A pool process ended a call above `max_rss`. It takes no further "
    "call and is replaced.",
    "budgets.processes_replaced": "The gate stayed closed with nothing running, so the worker "
    "replaced its pool processes.",
    "budgets.python_memory": "This Python (3.14.0 to 3.14.4) lets processes grow to several times "
    "their size.",
    "budgets.redelivered": "The worker stood still, or Redis was away, for longer than the "
    "visibility timeout, and a call that it has in hand was handed out again. The other run "
    "counts.",
    "budgets.redelivery_settled": "The broker delivered a message again whose call has ended in "
    "this worker. It was acknowledged and not run.",
    "budgets.renewal_back": "What the worker has in hand is renewed again.",
    "budgets.renewal_failed": "Redis did not take the renewal of what the worker has in hand. It "
    "is tried again, and told once.",
    "budgets.request_class_failed": "A method of your `Request` class raised. The call is settled "
    "all the same.",
    "budgets.rerun_failed": "The broker did not take the re-run of a killed call. The kill is "
    "final.",
    "budgets.sample_rate_ignored": "`OTEL_TRACES_SAMPLER` is set beside "
    "`budgets_span_sample_rate`, and decides.",
    "budgets.scope_cancelled": "A request scope was cancelled, or a call was revoked because its "
    "scope is cancelled.",
    "budgets.settling_failed": "A handler, a signal receiver or the result backend failed when "
    "the worker told of a call's end. The call has its outcome all the same.",
    "budgets.slot_recovered": "The pool had lost a call: the worker settled it as `worker_lost` "
    "and took its slot back. It should never happen; please report it.",
    "budgets.header_malformed": "A producer has sent a deadline, an instant or a scope that cannot "
    "be read. The call runs without it.",
    "budgets.queue_abandoned": "A default queue that no lane has holds messages, which no worker "
    "of a lane will take.",
    "budgets.queue_undeclared": "A route or a beat entry names a queue that the app does not "
    "declare: sending to it fails.",
    "budgets.slow_start": "A pool process took over half of `worker_proc_alive_timeout` to start. "
    "A replacement that takes longer than all of it is killed, again and again.",
    "budgets.soft_time_limit": "A call reached its soft time limit.",
    "budgets.span_lost": "A killed call has no span, because the worker main process has no "
    "tracer provider.",
    "budgets.telemetry_failed": "A span, a metric or a record could not be made. The call is not "
    "affected.",
    "budgets.thread_abandoned": "A thread runs on past the hard limit of its call. The call is "
    "over for its caller.",
    "budgets.time_limit_set": "An operator changed the time limits of a task.",
    "budgets.twin": "A call found that another call has its idempotency key.",
    "budgets.watchdog_failed": "The watchdog raised. It goes on in 1 s.",
    "budgets.worker_leaves": "The worker stops with the exit code in the message.",
    "budgets.worker_started": "The worker is ready: its lanes, its concurrency, and what its pool "
    "can enforce.",
}
