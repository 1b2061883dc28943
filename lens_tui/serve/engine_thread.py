"""The one thread of the server that runs MLX: it takes orders, decodes them in one open batch and says what comes.

Orders come from the threads of HTTP by a queue and are looked at between two steps; what comes of them (a
``Delivery``) is handed to a function of theirs, on this thread. An order that is wrong, or fails, ends by itself.
"""

from __future__ import annotations

import queue
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakValueDictionary

import mlx.core as mx

from lens_tui.lens.decode.batch import BatchOptions
from lens_tui.lens.decode.batch_rows import Row
from lens_tui.lens.decode.batch_start import Common, RowMaker
from lens_tui.lens.decode.open_batch import BatchEvent, OpenBatch, RowFailed, StepFailed
from lens_tui.lens.decode.sampling import make_sampler, penalties_from
from lens_tui.lens.hooks.steering import entries_of
from lens_tui.lens.model import LensModel
from lens_tui.lens.tokens import EncodedPrompt
from lens_tui.records import ArmEnd, Intervention, LensError, LensWarning, ModelInfo, Request, Sampling, SteeringVector
from lens_tui.records import Token as GeneratedToken
from lens_tui.records.errors import warnings_to
from lens_tui.records.sanitise import one_line
from lens_tui.sae.load_sae import SAE

from .in_step import PAUSE, InStep, StepMail
from .limits import Refused, ServeLimits
from .row_readings import Readings, sae_named
from .wire_request import FeatureTerm, Order, read_order


@dataclass(frozen=True, slots=True)
class ScoredToken:
    """A token with its log-probability in nats, and the likeliest ones at its place."""

    data: bytes
    logprob: float
    top: tuple[tuple[bytes, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Piece:
    """What a token adds to one of an order's answers. ``scored`` where log-probabilities were asked for."""

    answer: int
    text: str
    scored: ScoredToken | None = None


@dataclass(frozen=True, slots=True)
class Ended:
    """An answer has ended, for a ``reason`` of OpenAI's, after so many tokens; ``readings`` were asked for."""

    answer: int
    reason: str
    n_tokens: int
    readings: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Begun:
    """An order is right and has its place: how long its prompts are together, and what there is to say about it."""

    n_prompt: int
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Failed:
    """The order has ended with an error."""

    error: LensError


Delivery = Begun | Piece | Ended | Failed


_PATIENCE = 10.0
"""Seconds in which a step ends, after which processes that share a model are told to leave it."""
_CLEAR = 256
"""Steps after which MLX gives back the memory that it keeps for the next ones."""


@dataclass(frozen=True, eq=False)
class Catalogue:
    """What the server has: its model, and by name the vectors and SAEs it was started with."""

    name: str
    lens: LensModel
    vectors: Mapping[str, SteeringVector] = field(default_factory=dict)
    saes: Mapping[str, SAE] = field(default_factory=dict)


@dataclass(eq=False)
class Ticket:
    """An order on its way through the engine, as whoever has given it holds it.

    ``come`` is handed over once a step, or of an order that does not stream when an answer ends: every time, the loop
    of HTTP is woken, and takes its part of the interpreter from the thread that decodes.
    """

    order: Order
    deliver: Callable[[list[Delivery]], None]
    left: int
    number: int = -1
    come: list[Delivery] = field(default_factory=list)
    ended: bool = False
    prompts: list[EncodedPrompt] = field(default_factory=list)
    interventions: tuple[Intervention, ...] = ()
    readings: Readings | None = None


class Engine:
    """The thread. ``opened`` makes the catalogue on it, since a model belongs to the thread that has loaded it.

    Of a model that several processes share each has one, and all take the same turns (:mod:`.in_step`): orders are
    given in rank 0, and in the others, which end with it, there is nothing to do but to wait for that.

    Args:
        opened: What opens the model.
        limits: What orders may ask for.
    """

    def __init__(self, opened: Callable[[], Catalogue], limits: ServeLimits) -> None:
        self.limits = limits
        self._opened = opened
        self._mail: queue.SimpleQueue[Ticket | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._held = 0
        self._closing = self._dropping = self._asked_to_end = False
        self._steps = 0
        self._count = 0
        self._numbered: WeakValueDictionary[int, Ticket] = WeakValueDictionary()
        self._together: InStep | None = None
        self._cancelled: set[Ticket] = set()
        self._waiting: deque[tuple[Ticket, int]] = deque()
        self._rows: dict[int, tuple[Ticket, int, Row]] = {}
        self._ready: queue.SimpleQueue[Catalogue | BaseException] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="mlx-serve", daemon=True)
        self.catalogue: Catalogue
        self.info: ModelInfo
        self.failure: LensError | None = None
        self.on_end: Callable[[], None] = lambda: None

    def start(self) -> None:
        """Load the model; what its loading raises is raised here."""
        self._thread.start()
        found = self._ready.get()
        if isinstance(found, BaseException):
            raise found
        self.catalogue, self.info = found, found.lens.info

    # -- from any thread -----------------------------------------------------

    @property
    def held(self) -> int:
        """Rows that are being decoded or wait."""
        return self._held

    def submit(self, order: Order, deliver: Callable[[list[Delivery]], None]) -> Ticket:
        """Give an order; ``deliver`` is called on the engine's thread with what comes of it, in order.

        Raises:
            Refused: Where as many wait as may, and while the server ends.
        """
        with self._lock:
            if self._closing:
                raise Refused("The server is ending.", "Ask another.", status=503, kind="server_error")
            if self._held + order.rows > self.limits.rows + self.limits.queue:
                said = f"{self._held} answers are being written or wait, and this would be {order.rows} more."
                raise Refused(said, "Ask again later.", status=429, kind="rate_limit_error")
            self._held += order.rows
            ticket = Ticket(order, deliver, order.rows)
            self._mail.put(ticket)
        return ticket

    def cancel(self, ticket: Ticket) -> None:
        """Nobody wants this order any longer: its rows end before the next step."""
        if not ticket.ended:
            with self._lock:
                self._cancelled.add(ticket)
            self._mail.put(None)

    def close(self, seconds: float = 30.0) -> None:
        """Finish what has been accepted, for so long; then end the thread."""
        with self._lock:
            self._closing = True
        self._mail.put(None)
        self._thread.join(seconds)
        if self._thread.is_alive() and self._together is not None:
            self._dropping = True  # the others are told, or they would wait for this process
            self._thread.join(_PATIENCE)

    def ask_to_end(self) -> None:
        """This process was told to end; of several that share a model, all do, when rank 0's server has ended."""
        self._asked_to_end = True

    def wait(self) -> None:
        """Until the thread has ended. Raises what ended it, if that was an error."""
        self._thread.join()
        if self.failure is not None:
            raise self.failure

    # -- on the thread ---------------------------------------------------------

    def _run(self) -> None:
        try:
            catalogue = self._opened()
            self._batch = _open_batch(catalogue.lens, self.limits)
            _ = self._batch.way  # found out by a tiny batch, before anybody waits
        except BaseException as error:
            self._ready.put(error)
            return
        self.catalogue = catalogue
        shared = catalogue.lens.registry.decoder.shared
        self._together = None if shared is None else InStep(shared)
        self._ready.put(catalogue)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", LensWarning)  # each is said to the one who asked
            going = True
            while going:
                try:
                    going = self._turn()
                except Exception as error:  # a defect: whoever is being answered is told, and the others go on
                    if self._together is not None:
                        self._give_up(error)
                        break
                    self._begin_again(error)
        with suppress(Exception):
            self._batch.close()
        catalogue.lens.close()

    def _turn(self) -> bool:
        """Look at the mail and take a step; whether to go on."""
        idle = self._batch.idle and not self._waiting
        tickets, gone, ends = self._mail_of(idle)
        for ticket in tickets:
            self._prepare(ticket)
        if tickets and self._together is not None:
            self._together.agree()
        for ticket in gone:
            self._end(ticket)
        if ends and (self._dropping or (self._batch.idle and not self._waiting)):
            return False
        while self._waiting and len(self._rows) < self.limits.rows:
            self._begin(*self._waiting.popleft())
        events = self._batch.step()
        if self._together is not None:
            self._together.stepped(events)
        heard = [self._heard(event) for event in events]
        for ticket in dict.fromkeys(found for found in heard if found is not None and found.order.stream):
            _hand_over(ticket)
        self._steps += 1
        if self._steps % _CLEAR == 0 or (self._batch.idle and not idle):
            mx.clear_cache()  # batches of ever other shapes leave buffers that fit no later one
        return True

    def _mail_of(self, idle: bool) -> tuple[list[Ticket], list[Ticket], bool]:
        """New orders, those that nobody wants any longer, and whether no more will come; if idle, waits for them."""
        together = self._together
        if together is not None and not together.first:
            if idle:
                time.sleep(PAUSE)
            return self._take_turn(together.turn(StepMail(end=self._asked_to_end)))
        tickets: list[Ticket] = []
        if not (idle and self._closing) or together is not None:
            tickets = self._take_mail(wait=idle, seconds=None if together is None else PAUSE)
        with self._lock:
            closing = self._closing
            gone, self._cancelled = self._cancelled, set()
        tickets += self._take_mail(wait=False)  # what came before it was closed, and what is taken back
        for ticket in tickets:
            self._count += 1
            ticket.number = self._count
        if together is None:
            return tickets, list(gone), closing
        orders = [(ticket.order.kind, ticket.order.body) for ticket in tickets]
        numbers = [ticket.number for ticket in gone]
        turn = together.turn(StepMail(orders, numbers, self._asked_to_end, closing, self._dropping))
        if turn.end and not closing:
            self.on_end()
        return tickets, list(gone), turn.close or turn.drop

    def _take_turn(self, turn: StepMail) -> tuple[list[Ticket], list[Ticket], bool]:
        """What rank 0 has said, in another process: its orders, read again, have nobody to hear of them."""
        tickets = []
        for kind, body in turn.orders:
            order = read_order(body, kind, self.catalogue.vectors, self.limits)
            self._count += 1
            tickets.append(Ticket(order, lambda events: None, order.rows, self._count))
            self._numbered[self._count] = tickets[-1]
            self._held += order.rows
        gone = [found for number in turn.gone if (found := self._numbered.get(number)) is not None]
        self._dropping = turn.drop
        return tickets, gone, turn.close or turn.drop

    def _give_up(self, error: Exception) -> None:
        """The processes cannot go on together: everybody is told, and the server ends."""
        try:
            assert self._together is not None
            self._together.broken(error)
        except LensError as said:
            self.failure = said
            refusal = Refused(said.message, said.hint, status=500, kind="server_error")
        with self._lock:
            self._closing = True
        mail = self._take_mail(wait=False)
        held = [*(known[0] for known in self._rows.values()), *(waits for waits, _ in self._waiting), *mail]
        for ticket in dict.fromkeys(held):
            if not ticket.ended:
                ticket.ended = True
                _hand_over(ticket, Failed(refusal))
        self.on_end()

    def _begin_again(self, error: Exception) -> None:
        for ticket in {known[0] for known in self._rows.values()}:
            self._fail(ticket, error)
        self._rows.clear()
        with suppress(Exception):
            self._batch.close()
        self._batch = _open_batch(self.catalogue.lens, self.limits)

    def _take_mail(self, *, wait: bool, seconds: float | None = None) -> list[Ticket]:
        found: list[Ticket] = []
        try:
            mail = self._mail.get(wait, seconds)
            while True:
                if mail is not None:
                    found.append(mail)
                mail = self._mail.get(block=False)
        except queue.Empty:
            return found

    def _prepare(self, ticket: Ticket) -> None:
        """Find out whether an order can be done, and put its rows into the line."""
        order, lens = ticket.order, self.catalogue.lens
        said: list[str] = []
        try:
            with warnings_to(said.append):
                records = [self._record(item) for item in order.steering]
                ticket.interventions = tuple(records)
                entries_of(records, lens.registry)
            for prompt in order.prompts:
                encoded = lens.tokens.prompt(prompt, raw=order.kind == "text")
                if len(encoded.ids) > self.limits.prompt_tokens:
                    most = f"{self.limits.prompt_tokens:,} are allowed"
                    raise Refused(f"The prompt has {len(encoded.ids):,} tokens; {most}.", "Send less.")
                ticket.prompts.append(encoded)
            if order.readings is not None:
                readings = Readings(lens, order.readings, self.catalogue.vectors, self.catalogue.saes)
                longest = max(len(encoded.ids) for encoded in ticket.prompts)
                readings.check_size(longest, order.sampling.max_tokens, self.limits)
                ticket.readings = readings
        except Exception as error:
            self._fail(ticket, error)
            return
        if self._together is not None:
            self._together.prepared(order, [encoded.ids for encoded in ticket.prompts])
        _hand_over(ticket, Begun(sum(len(encoded.ids) for encoded in ticket.prompts), tuple(said)))
        self._waiting.extend((ticket, answer) for answer in range(order.rows))

    def _record(self, item: Intervention | FeatureTerm) -> Intervention:
        if isinstance(item, FeatureTerm):
            return item.intervention(sae_named(self.catalogue.saes, item.sae).vector(item.feature))
        return item

    def _begin(self, ticket: Ticket, answer: int) -> None:
        if ticket.ended:
            return
        order, lens = ticket.order, self.catalogue.lens
        number, nth = divmod(answer, order.n)
        try:
            processors = penalties_from(dict(_penalties(order)), lens.registry.decoder.vocab_size)
            request = Request(
                order.prompts[number],
                interventions=ticket.interventions,
                sampling=order.sampling_of(nth),
                raw=order.kind == "text",
                name="this request",
            )
            row = self._batch.enter(request, ticket.prompts[number], top=order.top, processors=processors)
        except Exception as error:
            self._fail(ticket, error)
            return
        self._rows[row.index] = ticket, answer, row

    def _heard(self, event: BatchEvent) -> Ticket | None:
        """Note what has come of a row; whose it is."""
        known = self._rows.get(event.arm)
        if known is None:
            return None
        ticket, answer, row = known
        if isinstance(event, RowFailed):
            self._fail(ticket, event.error)
        elif isinstance(event, ArmEnd):
            del self._rows[event.arm]
            self._ended(ticket, answer, row, event)
        else:
            ticket.come.append(Piece(answer, event.text, self._scored(ticket.order, row, event)))
        return ticket

    def _ended(self, ticket: Ticket, answer: int, row: Row, end: ArmEnd) -> None:
        try:
            found = ticket.readings.of(row) if ticket.readings is not None else None
        except Exception as error:
            self._let_go(ticket, 1)
            self._fail(ticket, error)
            return
        self._let_go(ticket, 1)
        ticket.ended = ticket.left == 0
        _hand_over(ticket, Ended(answer, "length" if end.reason == "length" else "stop", end.n_tokens, found))

    def _scored(self, order: Order, row: Row, token: GeneratedToken) -> ScoredToken | None:
        if not order.logprobs or token.token_id in row.stop_ids:
            return None
        data = self.catalogue.lens.tokens.bytes_of
        top = tuple((data(other.token_id), other.logprob) for other in token.top)
        return ScoredToken(data(token.token_id), token.logprob, top)

    def _fail(self, ticket: Ticket, error: Exception) -> None:
        if ticket.ended:
            return
        if self._together is not None and not isinstance(error, LensError):
            self._together.broken(error)  # whether the others failed too is not known
        self._end(ticket)
        if isinstance(error, StepFailed):
            error = Refused(error.message, error.hint, status=500, kind="server_error")
        if not isinstance(error, LensError):
            reason = one_line(f"{type(error).__name__}: {error}", 200).rstrip(".")
            error = Refused(f"The server could not do this ({reason}).", status=500, kind="server_error")
        _hand_over(ticket, Failed(error))

    def _end(self, ticket: Ticket) -> None:
        """Free all that an order holds."""
        if ticket.ended:
            return
        ticket.ended = True
        for index in [index for index, known in self._rows.items() if known[0] is ticket]:
            self._batch.drop(index)
            del self._rows[index]
        if any(waits is ticket for waits, _ in self._waiting):
            self._waiting = deque(pair for pair in self._waiting if pair[0] is not ticket)
        self._let_go(ticket, ticket.left)

    def _let_go(self, ticket: Ticket, rows: int) -> None:
        ticket.left -= rows
        with self._lock:
            self._held -= rows


def _hand_over(ticket: Ticket, *last: Delivery) -> None:
    events, ticket.come = [*ticket.come, *last], []
    if events:
        ticket.deliver(events)


def _penalties(order: Order) -> Mapping[str, Any]:
    """mlx-lm's options: a biased token is a number there, a text in JSON."""
    found = dict(order.penalties)
    biases = found.get("logit_bias")
    if isinstance(biases, Mapping):
        numbers = {int(token): bias for token, bias in biases.items() if str(token).isdecimal()}
        if len(numbers) != len(biases):
            raise Refused("logit_bias has a key that is no token id.", param="logit_bias")
        found["logit_bias"] = numbers
    return found


def _open_batch(lens: LensModel, limits: ServeLimits) -> OpenBatch:
    registry, vocab = lens.registry, lens.registry.decoder.vocab_size
    maker = RowMaker(registry, lens.tokens, Common((), Sampling()), make_sampler(Sampling(), vocab))
    options = BatchOptions(completion_batch_size=limits.rows)
    return OpenBatch(registry, lens.tokens, options, lens.prefixes, make_row=maker)
