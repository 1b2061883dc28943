"""What Features and Lens read of a conversation: its tokens in the template, asked of the worker."""

from __future__ import annotations

from lens_tui.tui.host import LensHost
from lens_tui.tui.session import AsRead
from lens_tui.worker.events import Event, PromptRead
from lens_tui.worker.jobs import ReadPrompt

__all__ = ["READING", "know_chat"]


READING = "reading …"
"""What stands in place of a text until the first of it is there."""


def know_chat(lens: LensHost) -> bool:
    """Have the tokens of the session's conversation in the session, unless they are there or there is none.

    Returns:
        Whether they have yet to come; the session changes when they do.
    """
    session = lens.store.session
    if not session.chatting or session.chat_ids or not (session.prompt or session.turns):
        return False
    model, question = session.model, session.question

    def take(event: Event) -> bool | None:
        if isinstance(event, PromptRead):
            lens.store.update(as_read=AsRead(model, question, event.token_ids))
        return None

    lens.submit(ReadPrompt(*question), "chat-ids", take)
    return True
