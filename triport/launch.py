"""Starts a run: in the right interpreter, in one process or through the framework's own launcher, with what each needs.

One process: this one becomes it. Several: `triport.job` watches over the launcher and the ranks it starts.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import shlex
import socket
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from triport import environments, job
from triport.core.errors import UserError
from triport.core.options import Parser
from triport.place import Place, variables, without_ranks

PADDLES = {  # options that Paddle's backend alone has
    "pretrain": ("--export", "--export pd writes every checkpoint that is kept as PASSL's scripts read it, too"),
}
HOMES = {
    "--passl-config": "paddle",
    "-o": "paddle",
    "--libai-config": "oneflow",
}  # where files are read if none is named
DEGREES = ("--data-parallel", "--tensor-parallel", "--pipeline-parallel")  # of OneFlow's alone, through LiBai
FOREIGN = (
    "a configuration of LiBai, PASSL or mmpretrain stands in the recipe's place (also --libai-config, --passl-config "
    "[-o K=V], --mmpretrain-config [--cfg-options K=V]), as do the flags of moco-v3's, MAE's and DeiT's programs; "
    "--show prints the recipe that comes of it and starts nothing"
)
PARTS = "--data-parallel D --tensor-parallel T --pipeline-parallel P splits a model, on LiBai's layers"
LOOPBACK = {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}  # of collectives on one machine
PROXIES = ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY")


def parser(task: str) -> Parser:
    """Return the options of starting a run; the run's own stand in triport.core.options."""
    p = Parser(
        prog=f"triport {task}", add_help=False, allow_abbrev=False, usage=argparse.SUPPRESS, argument_default=None
    )
    own = {"paddle": PADDLES[task][1]} if task in PADDLES else {}
    own |= {"oneflow": PARTS} if task != "pretrain" else {}
    p.epilog = "; ".join([FOREIGN, *(f"on {framework}: {what}" for framework, what in own.items())])
    where = p.add_argument_group("where it runs")
    where.add_argument("--backend", metavar="NAME", help="torch, paddle or oneflow; default: the first that is set up")
    where.add_argument("--processes", type=int, metavar="N", help="processes on this machine (1)")
    where.add_argument("--nodes", type=int, default=1, metavar="N", help="machines (1); start the command on each")
    where.add_argument("--node-rank", type=int, metavar="N", help="which of them this is, from 0")
    where.add_argument("--master", metavar="HOST:PORT", help="address of machine 0, with a free port")
    where.add_argument("--show-command", action="store_true", help="print what would be started, and start nothing")
    return p


def main(argv: Sequence[str]) -> int:
    """Run `triport pretrain …` and the other tasks. Options unknown here go on to the backend unchanged."""
    task = argv[0]
    options, words = parser(task).parse_known_args(list(argv[1:]))
    options.backend = owner(task, words, options.backend)
    if options.processes is None:
        options.processes = parts(words) if options.nodes == 1 else 1
    place = choose(options)
    check_name(task, words)
    if "-h" in words or "--help" in words:
        print(f"{parser(task).format_help().strip()}\n", flush=True)
    module = f"triport.backends.{place.framework}.{task}"
    if place.world == 1 or "-h" in words or "--help" in words:
        command = [str(place.python), "-m", module, *words]
        if place.framework == "torch" and not options.show_command:
            warn_of_ranks(os.environ)
        return show([(command, variables(place))]) if options.show_command else become(command, variables(place))
    if options.show_command:
        return show(start(place, [module, *words], {}, None))
    folder = job.private_folder()
    # OneFlow's own launcher does not notice a rank that hangs, and leaves orphans: the ranks are started directly.
    return job.run(
        lambda more: start(place, [module, *words], more, folder), launcher=place.framework != "oneflow", folder=folder
    )


def warn_of_ranks(environment: Mapping[str, str]) -> None:
    """Say so where variables that a launcher left in the shell would make one process wait for others."""
    world = environment.get("WORLD_SIZE", "1")
    if world != "1" and "TORCHELASTIC_RUN_ID" not in environment:
        print(
            f"triport: WORLD_SIZE={world} is set, so this process is one of {world} and waits for the others; "
            "for a run by itself: unset RANK WORLD_SIZE",
            file=sys.stderr,
            flush=True,
        )


def owner(task: str, words: Sequence[str], named: str | None) -> str | None:
    """Return the backend that alone has one of the options, else the one that was named."""
    given = [word.partition("=")[0] for word in words]
    for backend, title, options in (
        ("paddle", "Paddle", PADDLES.get(task, ())[:1]),
        ("oneflow", "OneFlow", DEGREES if task != "pretrain" else ()),
    ):
        for option in (option for option in given if option in options):
            if named not in (None, backend):
                raise UserError(f"{option} is of the {title} backend: --backend {backend}.")
            return backend
    return named or next((HOMES[option] for option in given if option in HOMES), None)


def check_name(task: str, words: Sequence[str]) -> None:
    """Raise UserError for a file that is not there, an unknown recipe or model; before anything is started or shown."""
    from triport.core.spec import recipe  # needs no more than Python
    from triport.core.spec.foreign import flags, hand_over

    values = dict(zip(words, [*words[1:], ""])) | dict(word.partition("=")[::2] for word in words if "=" in word)
    files = [values[option] for option in hand_over.FILES if values.get(option)]
    if words and words[0].endswith(hand_over.ENDINGS):
        files.append(words[0])
    for file in files:
        if not Path(file).is_file():
            raise UserError(f"{file}: there is no such file.")
    if files or not words or {"-h", "--help"} & set(words):
        return
    if words[0].startswith("-"):
        if task != "evaluate" and flags.program_of(task, words) is not None:
            flags.read(task, words)
    elif ("=" not in words[0] or "/" in words[0].partition("=")[0]) and not (
        task == "evaluate" and Path(words[0]).exists()
    ):
        recipe.find(words[0])


def parts(words: Sequence[str]) -> int:
    """Return the number of processes that degrees of a model in parts make; 1 without any."""
    values = dict(zip(words, [*words[1:], ""])) | dict(word.partition("=")[::2] for word in words if "=" in word)
    return math.prod(int(values[name]) for name in DEGREES if values.get(name, "").isdigit() and int(values[name]))


def parity(argv: Sequence[str]) -> int:
    """Run `triport parity …`: the tests' own program, which asks the frameworks in their environments."""
    command = [str(environments.base_python()), "-m", "triport.parity_tests.tool", *argv]
    return become(command, environments.with_project(os.environ))


def choose(options: argparse.Namespace) -> Place:
    """Return where the run takes place, or raise UserError."""
    for name in ("processes", "nodes"):
        if getattr(options, name) < 1:
            raise UserError(f"--{name} must be 1 or more.")
    framework = environments.known(options.backend) if options.backend else default_backend()
    if options.nodes > 1 and (options.master is None or options.node_rank is None):
        raise UserError("several --nodes also need --node-rank N and --master HOST:PORT (the same on each).")
    if not 0 <= (options.node_rank or 0) < options.nodes:
        raise UserError(f"--node-rank is from 0 to {options.nodes - 1}.")
    if options.master is not None and not options.master.rpartition(":")[2].isdigit():
        raise UserError(f"--master is HOST:PORT, not '{options.master}'.")
    if framework == "oneflow" and options.nodes > 1 and options.master.startswith(("127.", "localhost:", "[::1]")):
        # Its ranks find their device by rank within the machine, so they would wait for each other for ever.
        raise UserError("OneFlow cannot make two nodes of one machine: use --processes, or the address of another.")
    python = environments.require(framework)
    return Place(framework, python, options.processes, options.nodes, options.node_rank or 0, options.master)


def default_backend() -> str:
    """Return the framework of this interpreter, else the first that is set up, else torch."""
    here = (name for name in environments.FRAMEWORKS if environments.is_here(name))
    made = (name for name in environments.FRAMEWORKS if environments.interpreter(name))
    return next(here, None) or next(made, "torch")


def become(command: list[str], environment: dict[str, str]) -> int:
    """Turn this process into the command, so that signals, terminal and exit code are its own."""
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(command[0], command, environment)


def show(starts: Iterator[tuple[list[str], dict[str, str]]] | list[tuple[list[str], dict[str, str]]]) -> int:
    """Print commands with the variables that differ from this shell's."""
    for command, environment in starts:
        changed = [f"{name}={value}" for name, value in environment.items() if os.environ.get(name) != value]
        gone = [word for name in os.environ if name not in environment for word in ("-u", name)]
        print(shlex.join([*(["env"] if gone or changed else []), *gone, *changed, *command]))
    return 0


# ---------------------------------------------------------------- commands
def start(
    place: Place, words: list[str], more: Mapping[str, str], folder: Path | None
) -> Iterator[tuple[list[str], dict[str, str]]]:
    """Yield the command and environment of each child of the job: a launcher, or OneFlow's ranks themselves."""
    environment = {**without_ranks(variables(place)), **more}
    if place.nodes == 1:
        environment = {**LOOPBACK, **environment}
    if place.framework == "torch":
        if place.nodes == 1:
            environment["TRIPORT_STORE"] = str((folder or Path("FOLDER")) / "ranks")
            environment["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"  # or the launcher opens a port of its own
        yield torch_launcher(place, words, folder or Path("FOLDER")), environment
    elif place.framework == "paddle":
        yield paddle_launcher(place, words, folder), environment
    else:
        yield from oneflow_ranks(place, words, environment, folder)


def torch_launcher(place: Place, words: list[str], folder: Path) -> list[str]:
    """Return torchrun's command. On one node the processes meet in a file: its ports would be open to everyone."""
    host, _, port = (place.master or "").rpartition(":")
    nodes = ["--nnodes", "1", "--rdzv_backend", "c10d", "--rdzv_conf", "store_type=file", "--local_addr", "127.0.0.1"]
    nodes += ["--rdzv_endpoint", str(folder / "launcher"), "--log_dir", str(folder / "torch")]
    if place.nodes > 1:
        nodes = ["--nnodes", str(place.nodes), "--node_rank", str(place.node_rank)]
        nodes += ["--master_addr", host, "--master_port", port]
    launcher = [str(place.python), "-m", "torch.distributed.run", *nodes, "--nproc_per_node", str(place.processes)]
    return [*launcher, "-m", "triport.rank", *words]


def paddle_launcher(place: Place, words: list[str], folder: Path | None) -> list[str]:
    """Return paddle.distributed.launch's command. It takes no -m, and its logs hold the environment in clear text."""
    log = str(folder / "paddle") if folder else "LOG"
    devices = ["--nproc_per_node", str(place.processes)]
    if paddle_sees_gpus(place, words):
        seen = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(place.processes)))
        if len(seen.split(",")) < place.processes:
            raise UserError(f"--processes {place.processes} is more than the GPUs {seen} of CUDA_VISIBLE_DEVICES.")
        devices = ["--devices", ",".join(seen.split(",")[: place.processes])]
    nodes = []
    if place.nodes > 1:
        nodes = ["--nnodes", str(place.nodes), "--rank", str(place.node_rank), "--master", str(place.master)]
    launcher = [str(place.python), "-m", "paddle.distributed.launch", *nodes, *devices]
    script = str(Path(__file__).with_name("rank.py"))
    return [*launcher, "--log_dir", log, "--log_level", "ERROR", script, *words]


def paddle_sees_gpus(place: Place, words: Sequence[str]) -> bool:
    """Say whether ranks take GPUs: the environment holds the GPU build and the run is not for the CPU."""
    device = words[words.index("--device") + 1] if "--device" in words[:-1] else ""
    packages = (place.python.parent.parent / "lib").glob("python3*/site-packages/paddlepaddle_gpu-*")
    return device != "cpu" and "--device=cpu" not in words and any(packages)


def oneflow_ranks(
    place: Place, words: list[str], environment: dict[str, str], folder: Path | None
) -> Iterator[tuple[list[str], dict[str, str]]]:
    """Yield each rank of OneFlow on this node, the later ones once rank 0 listens."""
    host, _, port = (place.master or f"127.0.0.1:{free_port() if folder else 29500}").rpartition(":")
    calm = {name: value for name, value in environment.items() if name not in PROXIES}
    for local in range(place.processes):
        rank = place.node_rank * place.processes + local
        if rank > 0 and folder:
            # A rank that imports OneFlow before rank 0 listens sleeps for ten seconds.
            wait_for(host, int(port), folder / "rank-0.json", seconds=60)
        yield (
            [str(place.python), "-m", "triport.rank", *words],
            {
                **calm,
                "MASTER_ADDR": host,
                "MASTER_PORT": port,
                "WORLD_SIZE": str(place.world),
                "RANK": str(rank),
                "LOCAL_RANK": str(local),
                "LOCAL_WORLD_SIZE": str(place.processes),
                "GLOG_log_dir": str(folder or "LOG"),
            },
        )


def free_port() -> str:
    """Return a port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def wait_for(host: str, port: int, record: Path, seconds: float) -> None:
    """Wait until somebody listens there, or `record` says that rank 0 has ended; after `seconds` go on all the same."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            socket.create_connection((host, port), timeout=1).close()
            return
        with contextlib.suppress(OSError):
            if json.loads(record.read_text())["code"] is not None:
                return
        time.sleep(0.05)
