"""What PV-tuning needs in bytes, and where each part goes so that it fits."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from oaem.config.geometry import Geometry
from oaem.config.schema import PVTuning
from oaem.errors import UserError
from oaem.models.load import linear_shapes, load_config
from oaem.pv.shares import owners
from oaem.pv.teacher import TeacherPlace
from oaem.pv.team import PIECE

Place = Literal["device", "host", "disk"]
# Short sequences share a forward pass up to this many tokens, by kind of device: products as large as a processor
# likes, what is as large as the vocabulary (the head's cast and gradient) once for all of them, and on a GPU launches
# that do not outnumber the work. The paper's sequences are as long: one at a time.
TOKENS_AT_ONCE = {"cpu": 512, "cuda": 4096}


@dataclass(frozen=True)
class Placement:
    """The choices that trade memory for time; none of them changes a result."""

    teacher: TeacherPlace = "live"
    offload_buffers: bool = False
    offload_moments: bool = False


@dataclass(frozen=True)
class Item:
    """One part of what tuning holds."""

    name: str
    bytes: int
    place: Place


@dataclass(frozen=True)
class Plan:
    """A placement and everything it puts somewhere.

    Of several ranks: what lies on the fullest device, a rank's part of what all of them keep on their host, the disk.
    """

    placement: Placement
    items: tuple[Item, ...]
    gpus: int = 1

    def total(self, place: Place) -> int:
        """Bytes in one place."""
        return sum(item.bytes for item in self.items if item.place == place)

    def table(self) -> str:
        """One line an item, largest first."""
        ordered = sorted(self.items, key=lambda item: -item.bytes)
        lines = [f"  {item.bytes / 1e9:8.2f} GB  {item.place:6}  {item.name}" for item in ordered]
        return "\n".join([f"  on each of {self.gpus} devices, the fullest one:", *lines] if self.gpus > 1 else lines)


@dataclass(frozen=True)
class ModelShape:
    """The sizes of a model that decide its memory; linears are the (out, in) of one block."""

    blocks: int
    hidden: int
    intermediate: int
    query: int
    key_value: int
    vocabulary: int
    linears: tuple[tuple[int, int], ...]

    @classmethod
    def read(cls, model_folder: Path) -> ModelShape:
        """From the model's config.json."""
        config = load_config(model_folder)
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return cls(
            blocks=config.num_hidden_layers,
            hidden=config.hidden_size,
            intermediate=config.intermediate_size,
            query=config.num_attention_heads * width,
            key_value=config.num_key_value_heads * width,
            vocabulary=config.vocab_size,
            linears=tuple(linear_shapes(model_folder).values()),
        )

    @property
    def quantised(self) -> int:
        """Weights in quantised linears."""
        return self.blocks * sum(rows * columns for rows, columns in self.linears)

    @property
    def embedding(self) -> int:
        """Weights of the embeddings, and of the output head apart from them."""
        return self.vocabulary * self.hidden

    @property
    def unquantised(self) -> int:
        """Trained parameters outside the quantised linears; biases are too few to count."""
        return 2 * self.embedding + (2 * self.blocks + 1) * self.hidden


def memory_plan(
    shape: ModelShape,
    geometry: Geometry,
    settings: PVTuning,
    sequences: int,
    window: int,
    compute_bytes: int,
    device_bytes: int,
    host_bytes: int | None,
    disk_bytes: int,
) -> Plan:
    """The fastest placement that fits; UserError, with what the smallest one needs, if none does.

    sequences, window: of the PV token set. compute_bytes: of a number in matrix products, 2 for bfloat16.
    device_bytes, host_bytes: for each rank. host_bytes None: the device is the CPU, so that both are one memory and
    offloading would be for nothing.
    """
    shared = host_bytes is None
    offloads = [(False, False)] if shared else [(False, False), (True, False), (True, True)]
    places: list[TeacherPlace] = ["memory", "disk", "live"] if settings.gpus == 1 else ["disk", "live"]
    kind = "cpu" if shared else "cuda"
    plans = [
        plan_for(shape, geometry, settings, sequences, window, compute_bytes, Placement(place, *offload), kind)
        for offload in offloads
        for place in places
    ]
    for plan in plans:
        device, host = plan.total("device"), plan.total("host")
        memory = device + host <= device_bytes if host_bytes is None else device <= device_bytes and host <= host_bytes
        if memory and plan.total("disk") <= disk_bytes:
            return plan
    smallest = min(plans, key=lambda plan: plan.total("device"))
    host_part = "" if host_bytes is None else f" and {host_bytes / 1e9:.1f} GB of host memory"
    each = f" for each of {settings.gpus} devices" if settings.gpus > 1 else ""
    raise UserError(
        f"PV-tuning does not fit: {device_bytes / 1e9:.1f} GB of device memory{host_part} are free{each}, and it needs "
        f"at least this:\n{smallest.table()}\nUse a larger GPU or more of them (pv.gpus), request more host memory, "
        "free disk for the teacher's states, or set pv.gradient_checkpointing: true and a smaller pv.token_chunk."
    )


def plan_for(
    shape: ModelShape,
    geometry: Geometry,
    settings: PVTuning,
    sequences: int,
    window: int,
    compute_bytes: int,
    placement: Placement,
    device: str = "cuda",
) -> Plan:
    """Every part of a tuning under `placement` on a device of that kind."""
    rows = sum(rows for rows, _ in shape.linears)
    entries = geometry.num_codebooks * geometry.codebook_size * geometry.group_size
    tables = shape.blocks * (entries * len(shape.linears) + rows)
    codes = shape.quantised // geometry.group_size * geometry.num_codebooks
    continuous = shape.unquantised + tables
    buffer_copies = 3 if settings.code_beta1 else 2
    moment_copies = 2 if settings.beta1 else 1
    tokens = sequences_at_once(settings, window, device) * window
    backward = _activations(shape, settings, tokens, compute_bytes) + _logits(shape, settings, tokens, compute_bytes)
    workspace = _workspace(shape, settings, placement, buffer_copies, moment_copies)
    own_buffers, own_moments = _share(shape, tables, 4 * buffer_copies, 4 * moment_copies, placement, settings.gpus)
    items = [
        Item("dequantised weights", shape.quantised * compute_bytes, "device"),
        Item("gradients of dequantised weights", shape.quantised * 4, "device"),
        Item("codes", codes * (1 if geometry.codebook_size <= 256 else 4), "device"),
        Item("codebooks, scales and unquantised parameters", continuous * 4, "device"),
        Item("gradients of unquantised parameters", shape.unquantised * 4, "device"),
        Item(
            "straight-through buffers with moments",
            own_buffers,
            "host" if placement.offload_buffers else "device",
        ),
        Item("LAMB moments", own_moments, "host" if placement.offload_moments else "device"),
        Item("teacher's head", shape.embedding * compute_bytes, "device"),
        Item("activations and logits, or a step's workspace", max(backward, workspace), "device"),  # never together
    ]
    if placement.teacher == "live":
        blocks = (shape.quantised + shape.embedding) * compute_bytes
        items.append(Item("teacher's blocks and embeddings", blocks, "device"))
    else:
        cache = sequences * window * shape.hidden * compute_bytes
        items.append(Item("teacher's hidden states", cache, "host" if placement.teacher == "memory" else "disk"))
    offloaded = sum(item.bytes for item in items if item.place == "host" and item.name != "teacher's hidden states")
    reading = (shape.quantised + shape.embedding) * 2 - offloaded  # 16 bits each; over before anything is offloaded
    items.append(Item("the model while it is read", max(reading, 0), "host"))
    return Plan(placement, tuple(items), settings.gpus)


def sequences_at_once(settings: PVTuning, window: int, device: str) -> int:
    """Sequences of a forward pass: one, or as many short ones as make TOKENS_AT_ONCE tokens on that kind of device."""
    return min(settings.batch_size // settings.gpus, max(1, TOKENS_AT_ONCE[device] // window))


def _share(
    shape: ModelShape, tables: int, a_weight: int, a_number: int, placement: Placement, gpus: int
) -> tuple[int, int]:
    """Bytes of a rank's buffers and moments: on the device that gets most of them; on the host, an even part.

    tables: numbers in all codebooks and scales. a_weight, a_number: bytes of state for each weight that is quantised
    and for each other number.
    """
    block = (shape.quantised // shape.blocks * a_weight, (tables // shape.blocks + 2 * shape.hidden) * a_number)
    parts = {f"block {number}": block for number in range(shape.blocks)}
    parts |= {"embeddings": (0, shape.embedding * a_number), "head": (0, shape.embedding * a_number)}
    parts |= {"norm": (0, shape.hidden * a_number)}
    owner = owners({part: sum(sizes) for part, sizes in parts.items()}, gpus)
    held = [[0, 0] for _ in range(gpus)]
    for part, sizes in parts.items():
        for kind, size in enumerate(sizes):
            held[owner[part]][kind] += size
    offloaded = placement.offload_buffers, placement.offload_moments
    fullest = max(held, key=lambda sizes: sum(size for size, off in zip(sizes, offloaded, strict=True) if not off))
    even = [sum(sizes) // gpus for sizes in zip(*held, strict=True)]
    buffers, moments = (even[kind] if offloaded[kind] else fullest[kind] for kind in range(2))
    return buffers, moments


def block_activations(shape: ModelShape, tokens: int, compute_bytes: int) -> int:
    """What one block keeps of a forward pass for its backward pass.

    In float32: input and normalised input of both norms. In the compute dtype: the input of q, k, v, gate and up, cast
    for each of them; rotated queries and keys, values, attention's output and its cast; gate, its activation, up and
    their product. In float32 again attention's log-sum of each head, counted as one more query.
    """
    wide = 4 * 4 * shape.hidden
    narrow = 5 * shape.hidden + 4 * shape.query + 3 * shape.key_value + 4 * shape.intermediate
    return tokens * (wide + compute_bytes * narrow)


def _activations(shape: ModelShape, settings: PVTuning, tokens: int, compute_bytes: int) -> int:
    block = block_activations(shape, tokens, compute_bytes)
    # The backward pass of a block holds gradients about as large as what the block kept.
    if settings.gradient_checkpointing:
        # A block's input; on a CUDA device attention's result too, which takes longer to make again than it is large.
        return shape.blocks * tokens * (shape.hidden * 4 + shape.query * compute_bytes) + 2 * block
    return (shape.blocks + 1) * block


def _logits(shape: ModelShape, settings: PVTuning, tokens: int, compute_bytes: int) -> int:
    """Logits of a chunk, of student and teacher, and probabilities.

    And of the head: its cast, a chunk's gradient and their float32 sum; later that sum and its scaled copy. A CUDA
    device needs no more: it holds logits of four times as many tokens, no probabilities, and one gradient of the head.
    """
    chunk = min(settings.token_chunk, tokens)
    return chunk * shape.vocabulary * (2 * compute_bytes + 3 * 4) + shape.embedding * 8


def _workspace(
    shape: ModelShape, settings: PVTuning, placement: Placement, buffer_copies: int, moment_copies: int
) -> int:
    """The largest of what the step of one tensor needs: five copies of a layer, or LAMB's update of the embeddings.

    Or of what adding up gradients needs, a piece of every rank's.
    """
    layer = max(rows * columns for rows, columns in shape.linears)
    layer_copies = 5 + (buffer_copies if placement.offload_buffers else 0)
    embedding_copies = 2 + (moment_copies if placement.offload_moments else 0)
    pieces = settings.gpus * PIECE if settings.gpus > 1 else 0
    return 4 * max(layer * layer_copies, shape.embedding * embedding_copies, pieces)
