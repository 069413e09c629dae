"""The call of a block: like a task's call, with a slot and an interrupt of its own.

See also: :mod:`celery_budgets.execution.call`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from celery_budgets.execution.call import Call

if TYPE_CHECKING:
    from celery_budgets.blocks.interrupt import BlockInterrupt
    from celery_budgets.blocks.process_slots import Slot

__all__ = ["BlockCall"]


class BlockCall(Call):
    """One running block.

    Args:
        arguments: Positional arguments of :class:`celery_budgets.execution.call.Call`.
        interrupt: How it is interrupted; depends on where it runs, not on the pool.
        slot: The slot of this process that it holds.
        parent: The enclosing call in the same process.
        options: Keyword arguments of ``Call``.
    """

    __slots__ = ("interrupt", "slot")

    is_block: ClassVar[bool] = True

    def __init__(
        self,
        *arguments: Any,
        interrupt: BlockInterrupt,
        slot: Slot,
        parent: Call | None,
        **options: Any,
    ) -> None:
        super().__init__(*arguments, **options)
        self.interrupt = interrupt
        self.slot = slot
        slot.call = self
        self.parent = parent
