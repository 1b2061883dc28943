"""A worker for the tests of screens: same protocol, no thread, no MLX, the same events every time.

``FakeWorker()`` gives every event of every job at the next drain. With
``per_drain=5`` it gives five at each drain and wakes again while there are
more, as a running generation does. With ``hold=True`` it gives nothing until
``release(n)`` or ``release()`` says so, so a test can look at a screen in
mid-generation.
"""

from __future__ import annotations

import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from lens_tui.records import (
    Add,
    Arm,
    Candidate,
    Intervention,
    LensError,
    ModelInfo,
    Origin,
    SAEInfo,
    SteeringVector,
    Token,
)
from lens_tui.records.chat import Turn
from lens_tui.records.features import ContrastedFeature, FeatureActivity, FeatureExample, FeatureFacts, FoundFeature
from lens_tui.records.labels import Label
from lens_tui.records.prompt_set import PromptItem, SetCell
from lens_tui.records.sanitise import one_line, sanitise, sanitise_token
from lens_tui.records.steering_vector import RankedLayer
from lens_tui.records.training import FitReport, TrainProgress
from lens_tui.records.vector_formats import load_vectors
from lens_tui.worker import events as ev
from lens_tui.worker import jobs
from lens_tui.worker.events import NeighboursRead
from lens_tui.worker.jobs import ReadNeighbours
from tests.fake_causes import fake_patch, patch_origin
from tests.fake_dose import fake_dose, fake_search
from tests.fake_graphs import GraphJob, fake_graph
from tests.fake_lens import fake_lens, fake_parts, fake_pattern
from tests.fake_probes import fake_probes, fake_readings
from tests.fake_words import OTHERS, STOPWORDS, VOCAB, noise, split, token_id

D_MODEL = 384
WIDTH = 8192

DEMO_MODEL = ModelInfo(
    name="demo",
    path="/models/demo",
    architecture="llama",
    n_layers=8,
    d_model=D_MODEL,
    vocab_size=VOCAB,
    n_parameters=17_311_104,
    dtype="bfloat16",
    quantization="8-bit, groups of 64",
    nbytes=18_415_939,
    has_chat_template=False,
    bos_token_id=0,
    device="cpu",
)
DEMO_SAE = SAEInfo(
    id="layer_4_width_8k_l0_medium",
    name="demo layer 4, 8k",
    path="/models/demo/sae/layer_4_width_8k_l0_medium",
    architecture="jump_relu",
    site="resid_post",
    layer=4,
    d_model=D_MODEL,
    width=WIDTH,
    model_name="demo",
    l0=40.0,
    fvu=0.165,
    bos=True,
)

TEXTS = (
    " a little girl named Lily. She loved to play in the park with her friends.\n"
    "One day, she found a big red ball near the tall tree.",
    " a little dog named Max. He loved to run in the park and bark at the birds.\n"
    "One day, the dog found a bone under the tall tree.",
    " a little girl named Lily. She was very sad because it rained and rained.\n"
    "The dark clouds did not go away, and she cried.",
    " a big shiny sea. The fish swam and swam, and the waves were blue and blue and blue.",
)
PROMPTS = ("Once upon a time, there was", "The captain looked at the sea and said", "First, mix the flour with")


def unit_vector(name: str, layer: int = 4, origin: Origin | None = None, **facts: Any) -> SteeringVector:
    """A direction that depends on its name alone."""
    values = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(D_MODEL)
    return SteeringVector.of(name, values, layer, model="demo", origin=origin or Origin(), **facts)


@dataclass
class _Running:
    id: int
    job: jobs.Job
    events: Iterator[ev.Event] | None = None
    stopped: bool = False
    dials: dict[int, tuple[Intervention, ...]] = field(default_factory=dict)


class FakeWorker:
    """Implements ``WorkerLike``. ``submitted``, ``stopped`` and ``dialled`` record what the app asked.

    ``texts``: what arm 0, 1, ... writes (the last for all further arms).
    ``failures``: job class -> the error such a job ends with.
    """

    def __init__(
        self,
        *,
        per_drain: int | None = None,
        hold: bool = False,
        texts: Sequence[str] = TEXTS,
        failures: Mapping[type[jobs.Job], Exception] | None = None,
        model: ModelInfo = DEMO_MODEL,
        saes: tuple[SAEInfo, ...] = (DEMO_SAE,),
        dense: Mapping[int, float] | None = None,
    ) -> None:
        self.dense = tuple((dense or {}).items())
        self.per_drain, self.texts, self.model, self.saes = per_drain, texts, model, saes
        self.failures = dict(failures or {})
        self.submitted: list[jobs.Job] = []
        self.stopped: list[int | None] = []
        self.dialled: list[tuple[int, int, tuple[Intervention, ...]]] = []
        self.closed = False
        self._allowed: int | None = 0 if hold else None
        self._queue: deque[_Running] = deque()
        self._stopping: list[ev.Event] = []
        self._wake: Callable[[], None] = lambda: None
        self._armed = False
        self._words: dict[int, str] = {}
        self._encoded: ev.Encoded | None = None
        self.labels: dict[int, str] = {}
        self.fits: dict[str, FitReport] = {}

    def start(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._armed = False  # what was submitted before now woke nobody
        self._arm()

    def submit(self, job: jobs.Job) -> int:
        self.submitted.append(job)
        self._queue.append(_Running(len(self.submitted), job))
        self._arm()
        return len(self.submitted)

    def stop(self, job_id: int | None = None) -> None:
        self.stopped.append(job_id)
        for running in self._queue:
            if job_id in (None, running.id) and not running.stopped:
                running.stopped = True
                if running.events is not None:
                    self._stopping.append(ev.Stopping(running.id))
        self._arm()

    def dial(self, job_id: int, arm: int, interventions: tuple[Intervention, ...]) -> None:
        self.dialled.append((job_id, arm, interventions))
        for running in self._queue:
            if running.id == job_id:
                running.dials[arm] = interventions
        self._arm()

    def drain(self) -> list[ev.Event]:
        self._armed = False
        given, self._stopping = self._stopping, []
        while self._queue and (self.per_drain is None or len(given) < self.per_drain):
            running = self._queue[0]
            if self._allowed == 0 and not running.stopped:
                break
            running.events = running.events or self._run(running)
            event = next(running.events, None)
            if event is None:
                self._queue.popleft()
                continue
            if self._allowed:
                self._allowed -= 1
            given.append(event)
        self._arm()
        return given

    def close(self, timeout: float = 0.15) -> bool:
        self.closed = True
        self._queue.clear()
        return True

    def hold(self) -> None:
        """From now on give nothing, as with ``hold=True`` from the start."""
        self._allowed = 0

    def release(self, n: int | None = None) -> None:
        """Let ``n`` more events through, or all that come."""
        self._allowed = None if n is None else (self._allowed or 0) + n
        self._arm()

    @property
    def idle(self) -> bool:
        return not self._queue

    @property
    def held(self) -> bool:
        """Whether events wait for ``release``."""
        return self._allowed == 0

    def job_ids(self, kind: type[jobs.Job]) -> list[int]:
        """The ids of the submitted jobs of a kind."""
        return [number for number, job in enumerate(self.submitted, 1) if isinstance(job, kind)]

    def _arm(self) -> None:
        ready = any(running.stopped for running in self._queue) or (bool(self._queue) and self._allowed != 0)
        if ready and not self._armed and not self.closed:
            self._armed = True
            self._wake()

    def _run(self, running: _Running) -> Iterator[ev.Event]:
        if running.stopped:
            yield ev.JobDone(running.id, stopped=True)
            return
        yield ev.JobStarted(running.id, type(running.job).__name__)
        error = next((error for kind, error in self.failures.items() if isinstance(running.job, kind)), None)
        try:
            if error is not None:
                raise error
            yield from self._handle(running)
        except LensError as problem:
            yield ev.JobFailed(running.id, one_line(problem.message), one_line(problem.hint))
        except Exception as problem:
            yield ev.JobFailed(running.id, one_line(f"{type(problem).__name__}: {problem}"), "", "Traceback (fake)")
        else:
            yield ev.JobDone(running.id, stopped=running.stopped)

    def _handle(self, running: _Running) -> Iterable[ev.Event]:
        number = running.id
        match running.job:
            case jobs.LoadModel(model):
                return self._load(number, model)
            case jobs.UnloadModel():
                return [ev.ModelUnloaded(number)]
            case jobs.LoadSAE(path):
                info = next((sae for sae in self.saes if path in (sae.id, sae.path)), DEMO_SAE)
                report = self.fits.get(info.id)
                return [ev.SAELoaded(number, info), *([ev.SAEChecked(number, info.id, report)] if report else [])]
            case jobs.SetLabel(sae, feature, text):
                self.labels[feature] = text
                return [ev.LabelSet(number, sae, feature, text)]
            case jobs.FindFeatures(sae, words):
                found = (FoundFeature(17, f"all about {words}", "label"), FoundFeature(4, "promotes ‘x’", "x"))
                return [ev.FeaturesFound(number, sae, words, () if "nothing" in words else found, indexed=True)]
            case jobs.ReadWritten() as written:
                return self._written(number, written)
            case jobs.ContrastTexts() as contrast:
                return [fake_contrast(number, contrast)]
            case jobs.IndexText() | jobs.TrainSAE() as work:
                return self._long(running, work)
            case jobs.ExportFeatures(path=path, features=features):
                return [ev.FeaturesExported(number, path, len(features))]
            case jobs.ReadPrompt(prompt, turns):
                return [_prompt_read(number, prompt, turns)]
            case jobs.Compare() as compare:
                return self._compare(running, compare)
            case jobs.ComparePrompts() as asked:
                return self._compare_set(running, asked)
            case jobs.Encode() as encode:
                return self._encode(number, encode)
            case jobs.ReadLens() as lens:
                reading = fake_lens(lens)
                beside = replace(reading, method="logit") if lens.jacobian else None
                return [ev.LensRead(number, reading, beside)]
            case jobs.ReadParts() as parts:
                return [ev.PartsRead(number, fake_parts(parts))]
            case jobs.Patch() as patch:
                return fake_patch(number, patch)
            case jobs.VectorFromPatch() as patched:
                origin, site = patch_origin(patched)
                return [_made(number, unit_vector(patched.name, patched.layer, origin, site=site))]
            case of_graph if isinstance(of_graph, GraphJob):
                return fake_graph(number, of_graph)
            case jobs.VectorFromNode(_, node, name):
                return [_made(number, unit_vector(name, 3, Origin("given", {"node": node})))]
            case jobs.ReadPattern() as pattern:
                return [ev.PatternRead(number, fake_pattern(pattern))]
            case jobs.ReadFeature(sae, feature):
                return self._read(number, sae, feature)
            case ReadNeighbours(sae, feature, top):
                near = tuple(((feature + 37 * step) % WIDTH, round(0.8 - 0.05 * step, 3)) for step in range(1, top + 1))
                together = None if feature % 2 else near[:3]
                return [NeighboursRead(number, sae, feature, near, together)]
            case jobs.VectorFromFeature(sae, feature):
                return [_made(number, self._feature_vector(sae, feature))]
            case jobs.TrainProbes() as probing:
                return [fake_probes(number, probing, D_MODEL, 8)]
            case jobs.VectorFromPrompts() as prompts:
                return [_contrast(number, prompts)]
            case jobs.VectorFromToken(token, layer, kind, name):
                if token.count(" ") > 1:
                    raise LensError(f"{token!r} is not one token.", "Give a text that is, or an id.")
                facts = {"token": token_id(token), "text": token, "kind": kind}
                return [_made(number, unit_vector(name or f"token {token}", layer, Origin("token", facts)))]
            case jobs.VectorFromVectors(name, terms, less, unit):
                return [_made(number, _summed(name, terms, less, unit))]
            case jobs.VectorGiven(vector):
                return [_made(number, vector)]
            case jobs.BareVectors(wanted):
                return [self._bare(number, one) for one in wanted]
            case jobs.MeasureDose() as dose:
                return fake_dose(running, number, dose)
            case jobs.FindScale() as search:
                return fake_search(running, number, search)
            case jobs.VectorFromFile(path, layer):
                vector, *rest = load_vectors(path, layer=layer, d_model=D_MODEL)
                return [replace(_made(number, vector), rest=tuple(rest))]
            case jobs.RandomVector(name, layer, seed):
                return [_made(number, unit_vector(name, layer, Origin("random", {"seed": seed})))]
            case other:
                raise LensError(f"The fake worker does not know {type(other).__name__}.", "Teach it in tests/fakes.py.")

    def _long(self, running: _Running, job: jobs.IndexText | jobs.TrainSAE) -> Iterator[ev.Event]:
        number = running.id
        for done in range(0, 1000, 100):
            if running.stopped:
                return
            if isinstance(job, jobs.TrainSAE):
                at = TrainProgress(stage="train", step=done, steps=1000, tokens=done, fvu=0.25, l0=32.0, dead=0.01)
                yield ev.TrainingAt(number, job.layers[0], at)
            yield ev.Progress(
                number, "training" if isinstance(job, jobs.TrainSAE) else "indexing", done, 1000, "tokens"
            )
        if isinstance(job, jobs.IndexText):
            yield ev.TextIndexed(number, job.saes, ("/indexes/0",), 1000)
        else:
            yield ev.SAETrained(number, ("/saes/0",), "L0 32.0, FVU 0.250")

    def _load(self, number: int, name: str) -> Iterator[ev.Event]:
        if "missing" in name:
            raise LensError(f"There is no model at {one_line(name)}.", "Check the path or the hub id.")
        yield ev.Progress(number, "config")
        yield ev.Progress(number, "tokenizer")
        for quarter in range(5):
            yield ev.Progress(number, "weights", quarter * self.model.nbytes // 4, self.model.nbytes, "bytes")
        yield ev.Progress(number, "warm-up")
        yield ev.ModelLoaded(number, self.model, self.saes)

    def _compare(self, running: _Running, job: jobs.Compare) -> Iterator[ev.Event]:
        number, limit = running.id, job.sampling.max_tokens
        prompt = ["<|endoftext|>", *split(job.prompt)]
        arms = job.arms or (Arm("baseline"),)
        lanes = [split(self.texts[min(arm, len(self.texts) - 1)])[:limit] for arm in range(len(arms))]
        ids = tuple(token_id(word) for word in prompt)
        yield ev.RunStarted(number, ids, tuple(map(sanitise_token, prompt)), tuple(arm.name for arm in arms))
        acting = [arm.interventions for arm in arms]
        for step in range(max(map(len, lanes), default=0)):
            if running.stopped:
                break
            for arm, interventions in sorted(running.dials.items()):
                acting[arm] = interventions
                yield ev.Dialed(number, arm, step, interventions)
            running.dials.clear()
            for arm, words in enumerate(lanes):
                if step < len(words):
                    token = self._token(arm, step, lanes, job.top)
                    read = fake_readings(len(job.monitors), arm, step - 1)
                    yield ev.TokenEvent(number, replace(token, scales=_scales(acting[arm]), readings=read))
            for arm, words in enumerate(lanes):
                if job.sae and step < len(words):
                    yield self._arm_features(number, job.sae, arm, step, [lanes[arm][step]])
                if step == len(words) - 1:
                    reason = "length" if len(words) == limit else "stop"
                    read = fake_readings(len(job.monitors), arm, step)
                    yield ev.ArmDone(number, arm, reason, len(words), _dose(arms[arm]), read)
            yield ev.Speed(number, 40.0 * len(lanes), step + 1, limit)
        else:
            return
        for arm, words in enumerate(lanes):
            if step < len(words):
                read = fake_readings(len(job.monitors), arm, step - 1)
                yield ev.ArmDone(number, arm, "stopped", step, _dose(arms[arm]), read)

    def _compare_set(self, running: _Running, job: jobs.ComparePrompts) -> Iterator[ev.Event]:
        number, limit = running.id, job.sampling.max_tokens
        if job.path and job.path != "bundled":
            raise LensError(f"There is no file {one_line(job.path, 60)}.", "Check the path.")
        given = job.prompts or tuple(PromptItem(f"p{n}", f"{PROMPTS[n]}") for n in range(len(PROMPTS)))
        prompts = given[: job.first]
        arms = job.arms if any(arm.is_baseline for arm in job.arms) else (Arm("baseline"), *job.arms)
        seeds = job.seeds or (job.sampling.seed,)
        yield ev.SetStarted(number, job.path or "typed", prompts, arms, seeds)
        lanes = [split(self.texts[min(arm, len(self.texts) - 1)])[:limit] for arm in range(len(arms))]
        for place, item in enumerate(prompts):
            words = ["<|endoftext|>", *split(item.text)]
            yield ev.SetPrompt(number, place, tuple(map(token_id, words)), tuple(map(sanitise_token, words)))
        rows = [(p, arm, seed) for p in range(len(prompts)) for arm in range(len(arms)) for seed in range(len(seeds))]
        came: dict[tuple[int, int, int], list[Token]] = {}
        for step in range(max(map(len, lanes))):
            for place, arm, seed in rows:
                if step < len(lanes[arm]) and not running.stopped:
                    token = self._token(arm, step, lanes, job.top)
                    kl = round((token.kl or 0.0) * (1 + noise(prompts[place].text, arm, seed)), 4)
                    came.setdefault((place, arm, seed), []).append(replace(token, kl=kl))
                    plain = replace(token, kl=None, reverse_kl=None, plain_logprob=None)
                    yield ev.SetTokenCame(number, place, seed, plain)
        for (place, arm, seed), tokens in came.items():
            reason = "stopped" if running.stopped else "length" if len(tokens) == limit else "stop"
            text = "".join(token.text for token in tokens)
            back = None if not job.sae or running.stopped else round(5 * noise(prompts[place].text, arm), 3)
            yield ev.SetCellDone(
                number, SetCell(place, arm, seed, tuple(tokens), text, reason, _dose(arms[arm]), 0.9, back)
            )

    def _arm_features(self, number: int, sae: str, arm: int, start: int, words: Sequence[str]) -> ev.ArmFeatures:
        """Two features of each word: one of its own, and feature 7, which is active wherever a word has an “o”."""
        ids = np.array([[zlib.crc32(word.encode()) % WIDTH, 7 if "o" in word else -1] for word in words], np.int32)
        values = np.array([[3.0, 4.0 + arm if "o" in word else 0.0] for word in words], np.float32)
        names = tuple((int(f), f"things about {f}", f != 7) for f in np.unique(ids) if f >= 0)
        return ev.ArmFeatures(number, sae, arm, start, ids, values, names, self.dense)

    def _written(self, number: int, job: jobs.ReadWritten) -> Iterator[ev.Event]:
        for arm, (_, ids) in enumerate(job.arms):
            words = [self._words.get(token, "?") for token in ids]
            if job.feature < 0:
                yield self._arm_features(number, job.sae, arm, 0, words)
            else:
                values = np.array([4.0 + arm if "o" in word else 0.0 for word in words], np.float32)
                yield ev.ArmActivation(number, job.sae, job.feature, arm, values)

    def _token(self, arm: int, step: int, lanes: list[list[str]], top: int) -> Token:
        word = lanes[arm][step]
        self._words[token_id(word)] = word
        kl = 0.0 if arm == 0 else round(0.004 + 3 * noise(arm, step, word) ** 4, 4)
        logprob = -round(0.05 + 9 * noise(word, step) ** 2, 4)
        rest = [Candidate(token_id(other), other, logprob - 0.7 * (n + 1)) for n, other in enumerate(OTHERS)]
        shown = sanitise_token(word)
        candidates = (Candidate(token_id(word), shown, logprob), *(c for c in rest if c.text != word))[:top]
        head = (step, token_id(word), shown, sanitise(word), logprob, arm, kl, candidates)
        return Token(*head, reverse_kl=1.5 * kl, plain_logprob=round(logprob - kl, 4))

    def _encode(self, number: int, job: jobs.Encode) -> Iterator[ev.Event]:
        words = [self._words.get(i, f" tok{i}") for i in job.token_ids] or ["<|endoftext|>", *split(job.text)]
        n, k = len(words), job.top_k
        ids, values = np.full((n, k), -1, np.int32), np.zeros((n, k), np.float32)
        for row, word in enumerate(words):
            if row == 0 and word.startswith("<|"):
                continue
            base = zlib.crc32(word.strip().encode("utf-8", "surrogatepass"))
            ids[row] = [(base + 37 * place) % WIDTH for place in range(k)]
            strongest = 2.0 if word in STOPWORDS else 4.0 + 8.0 * noise(word)
            values[row] = strongest / np.arange(1, k + 1)
        special = tuple(word.startswith("<|") for word in words)
        tokens = tuple(map(sanitise_token, words))
        self._encoded = ev.Encoded(
            number,
            job.sae,
            tuple(map(token_id, words)),
            tokens,
            special,
            ids,
            values,
            l0=41.3,
            fvu=0.165,
            dense=self.dense,
        )
        yield self._encoded

    def _read(self, number: int, sae: str, feature: int) -> Iterator[ev.Event]:
        if not 0 <= feature < WIDTH:
            raise LensError(f"Feature {feature} does not exist: {sae} has features 0 to {WIDTH - 1}.")
        if self._encoded is not None:
            values = np.where(self._encoded.ids == feature, self._encoded.values, 0).max(axis=1, initial=0.0)
            yield ev.FeatureActivations(number, sae, feature, values.astype(np.float32))
        vector = self._feature_vector(sae, feature)
        facts = known_facts(feature, sae=sae, label=self.labels.get(feature, ""))
        yield ev.FeaturePage(number, sae, feature, facts, vector)

    def _bare(self, number: int, job: jobs.VectorFromFeature | jobs.VectorFromFile) -> ev.VectorMade:
        if isinstance(job, jobs.VectorFromFeature):
            return ev.VectorMade(number, self._feature_vector(job.sae, job.feature))
        vector, *rest = load_vectors(job.path, layer=job.layer, d_model=D_MODEL)
        return ev.VectorMade(number, vector, rest=tuple(rest))

    def _feature_vector(self, sae: str, feature: int) -> SteeringVector:
        origin = Origin("feature", {"sae": sae, "feature": feature})
        return unit_vector(f"feature {feature}", 4, origin, max_activation=round(4 + 20 * noise(feature), 2))


def fake_contrast(number: int, job: jobs.ContrastTexts) -> ev.Event:
    """Five features that tell the texts apart, each worse than the one before."""
    if min(len(job.a), len(job.b)) < 4 and not (job.path_a and job.path_b):
        raise LensError(f"There are {len(job.a)} texts against {len(job.b)}.", "Give four on each side.")
    found = tuple(
        ContrastedFeature(100 + n, 1.0, 1 - n / 10, 0.1, 3.0, 1.0, 1.0, 0.2, 1 - n / 10, 2.5 - n, 0.001 * 9**n, 0.9)
        for n in range(4)
    )
    return ev.Contrasted(number, job.sae, found, len(job.a) or 8, len(job.b) or 8)


def _contrast(number: int, job: jobs.VectorFromPrompts) -> ev.Event:
    facts = {"positive": list(job.positive), "negative": list(job.negative), "method": job.method}
    if job.layer is not None:
        return _made(number, unit_vector(job.name, job.layer, Origin("prompts", facts)))
    if len(job.positive) != len(job.negative):
        raise LensError("These texts are no pairs.", "Give as many of each.")
    held = len(job.positive) > 1
    layers = [
        RankedLayer(
            unit_vector(job.name, layer, Origin("prompts", facts)),
            gap=2.0 + layer,
            relative=0.05 * (1 + layer),
            auc=round(1.0 - 0.06 * abs(layer - 5), 3) if held else None,
            accuracy=round(1.0 - 0.08 * abs(layer - 5), 3) if held else None,
            pairs=round(1.0 - 0.07 * abs(layer - 5), 3) if held else None,
            d_prime=round(3.0 - 0.3 * abs(layer - 5), 2) if held else None,
        )
        for layer in range(8)
    ]
    ranked = sorted(layers, key=lambda row: (-(row.auc or 0.0), -(row.relative or 0.0)))
    return ev.LayersRanked(number, tuple(ranked), len(job.positive))


def _summed(name: str, terms: tuple[tuple[float, SteeringVector], ...], less: bool, unit: bool) -> SteeringVector:
    if len({vector.layer for _, vector in terms}) > 1:
        raise LensError("They are not of one place.", "Combine vectors of the same layer and site.")
    names = [{"name": vector.name} for _, vector in terms]
    parts = [{"factor": factor, "name": vector.name} for factor, vector in terms]
    facts: dict[str, Any] = {"of": names[0], "without": names[1:]} if less else {"sum": parts, "unit": unit}
    return unit_vector(name, terms[0][1].layer, Origin("arithmetic", facts))


def _made(number: int, vector: SteeringVector) -> ev.VectorMade:
    seed = zlib.crc32(vector.name.encode())
    return ev.VectorMade(number, vector, 42.5, _weights(seed, 1), _weights(seed, -1))


def _weights(seed: int, sign: int) -> tuple[ev.TokenWeight, ...]:
    words = (" dog", " dogs", " puppy", " bark", " bone", " cat", " tail", " paw", " leash", " wag")
    turned = deque(words)
    turned.rotate(seed % len(words) + (sign < 0) * 5)
    return tuple(ev.TokenWeight(token_id(word), word, sign * round(3.0 - 0.21 * n, 3)) for n, word in enumerate(turned))


def known_facts(feature: int, *, sae: str = DEMO_SAE.id, label: str = "") -> FeatureFacts:
    """What the stand-in knows of a feature; ``label`` is yours."""
    tokens = (" The", " little", " dog", " ran", " to", " the", " park", ".")
    peak = feature % len(tokens)
    values = tuple(max(0.0, 9.0 - 3.5 * abs(place - peak)) for place in range(len(tokens)))
    example = FeatureExample(0, peak, values[peak], peak, tokens, values)
    activity = FeatureActivity(
        "stories",
        key="stories-0",
        counted_tokens=1_234_567,
        density=round(0.002 + 0.03 * noise(feature, "density"), 4),
        max=round(4 + 20 * noise(feature), 2),
        histogram=(512, 256, 128, 90, 64, 40, 20, 10, 4, 1),
        edges=tuple(float(edge) for edge in range(11)),
        examples=(example,) * 3,
        samples=tuple((2.0**n, (example,) * 2) for n in (3, 2, 1)),
    )
    text, source = (label, "mine") if label else (f"things about number {feature}", "bundled")
    return replace(
        bare_facts(feature, sae=sae),
        labels=(label_of(feature, text, source),),
        promoted=_weights(feature, 1),
        suppressed=_weights(feature, -1),
        index=activity,
    )


def bare_facts(feature: int, *, sae: str = "s") -> FeatureFacts:
    """A feature of which nothing is known."""
    return FeatureFacts("demo", "an SAE", sae, 4, "resid_post", feature)


def label_of(feature: int, text: str, source: str = "mine", score: float | None = None, scorer: str = "") -> Label:
    """A label as a store gives it."""
    return Label(0, "s", feature, text, source, "", "", "", score, scorer, "", "", "", "")


def _scales(interventions: Iterable[Intervention]) -> tuple[tuple[str, float], ...]:
    return tuple((item.id, float(item.scale)) for item in interventions if isinstance(item, Add) and item.enabled)


def _dose(arm: Arm) -> float | None:
    return None if arm.is_baseline else 0.31


def _prompt_read(number: int, prompt: str, turns: Sequence[Turn]) -> ev.PromptRead:
    """A prompt, or a conversation in the form of the bundled model's dialogues."""
    tokens: list[str] = ["<|endoftext|>"]
    spans: list[tuple[str, int, int]] = []
    for turn in turns:
        head, said = [turn.role.capitalize(), ":"], split(f" {turn.content.strip()}")
        spans.append(("template", len(tokens) if spans else 0, len(tokens) + 2))
        spans.append((turn.role, len(tokens), len(tokens) + len(said) + 3))
        tokens += [*head, *said, "\n"]
        spans.append(("template", len(tokens) - 1, len(tokens)))
    if turns:
        spans.append(("template", len(tokens), len(tokens) + 2))
    tokens += ["Assistant", ":"] if turns else split(prompt)
    shown = tuple(map(sanitise_token, tokens))
    return ev.PromptRead(number, tuple(map(token_id, tokens)), shown, tuple(spans) if turns else None)
