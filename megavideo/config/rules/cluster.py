"""Cross-field rules of `slurm-gen`: what Slurm would refuse, or take without effect."""

from __future__ import annotations

import re
import unicodedata

from megavideo.border.secrets import is_secret_name
from megavideo.config.names import texts_of
from megavideo.config.rules.effect import refuse_set
from megavideo.config.schema.cluster import SlurmGenRun
from megavideo.errors import ConfigError

_TIME = re.compile(r"(?:(?P<days>\d+)-)?(?P<first>\d+)(?::(?P<second>\d+))?(?::(?P<third>\d+))?")
_MEMORY = re.compile(r"\d+[KMGT]?")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_NOT_IN_A_LINE = ("Cc", "Cs", "Zl", "Zp")  # control characters, bytes that are no UTF-8, ends of lines and paragraphs
_SET_BY_FIELDS = (
    "--account", "--cpus-per-task", "--exclusive", "--gpus-per-node", "--mem", "--nodes", "--ntasks-per-node",
    "--partition", "--qos", "--signal", "--time",
)  # fmt: skip
# what the scripts rely on: logs that go on, starting again, and one job or array as it was rendered
_SET_BY_SCRIPTS = (
    "--array", "--job-name", "--kill-on-invalid-dep", "--no-requeue", "--ntasks", "--open-mode", "--output",
    "--requeue",
)  # fmt: skip


def seconds_of(field: str, text: str) -> int:
    """A time of Slurm in seconds: minutes, `MM:SS`, `HH:MM:SS`, `D-HH`, `D-HH:MM` or `D-HH:MM:SS`.

    Raises ConfigError naming `field` for anything else.
    """
    match = _TIME.fullmatch(text)
    if match is None:
        raise ConfigError(field, text, "is no time of Slurm", f"write {field}=2-12:00:00 for two days and a half")
    numbers = [int(number) for number in (match["first"], match["second"], match["third"]) if number]
    if match["days"] is not None:
        hours, minutes, seconds = (*numbers, 0, 0)[:3]
        return ((int(match["days"]) * 24 + hours) * 60 + minutes) * 60 + seconds
    if len(numbers) == 3:
        return (numbers[0] * 60 + numbers[1]) * 60 + numbers[2]
    return numbers[0] * 60 + (numbers[1] if len(numbers) == 2 else 0)


def texts_are_lines(cfg: SlurmGenRun) -> None:
    """No text has a line break or another control character: scripts are made of lines."""
    for path, text in texts_of(cfg):
        if any(unicodedata.category(character) in _NOT_IN_A_LINE for character in text):
            rule = "holds a line break or another control character"
            raise ConfigError(path, text, rule, "write it on one line, in plain characters")


def tasks_are_gpus(cfg: SlurmGenRun) -> None:
    """A node has one task for each GPU, and a number of its own without."""
    cluster = cfg.cluster
    if cluster.gpus_per_node and cluster.tasks_per_node is not None:
        rule = f"has no effect with cluster.gpus_per_node={cluster.gpus_per_node}: there is one task for each GPU"
        raise ConfigError("cluster.tasks_per_node", cluster.tasks_per_node, rule, "take cluster.tasks_per_node=null")
    if not cluster.gpus_per_node and cluster.tasks_per_node is None:
        rule = "is required with cluster.gpus_per_node=0"
        raise ConfigError("cluster.tasks_per_node", None, rule, "add cluster.tasks_per_node=1, or more")


def times_are_times(cfg: SlurmGenRun) -> None:
    """A job is told to save within its time, with time left to begin: Slurm may signal a minute early."""
    for name in ("ingest", "encode"):
        seconds_of(f"cluster.{name}.time_limit", getattr(cfg.cluster, name).time_limit)
    limit = seconds_of("cluster.time_limit", cfg.cluster.time_limit)
    if cfg.cluster.signal_seconds + 60 > limit:
        rule = f"leaves a job of cluster.time_limit={cfg.cluster.time_limit} no minute to train in"
        most = max(1, limit // 4)
        remedy = f"take cluster.signal_seconds={most}, or a longer cluster.time_limit"
        raise ConfigError("cluster.signal_seconds", cfg.cluster.signal_seconds, rule, remedy)


def memory_is_slurms(cfg: SlurmGenRun) -> None:
    """Memory is a whole number with a unit, of megabytes without."""
    cluster = cfg.cluster
    for name, value in (
        ("memory", cluster.memory), ("ingest.memory", cluster.ingest.memory), ("encode.memory", cluster.encode.memory)
    ):  # fmt: skip
        if value is not None and not _MEMORY.fullmatch(value):
            rule = "must be a whole number and K, M, G or T"
            raise ConfigError(f"cluster.{name}", value, rule, f"write cluster.{name}=64G")


def environment_names_are_variables(cfg: SlurmGenRun) -> None:
    """Names of environment variables are words; what has a field of its own is set there."""
    for name, value in cfg.cluster.environment.items():
        field = f"cluster.environment.{name}"
        if not _VARIABLE.fullmatch(name):
            raise ConfigError(field, None, "is no name of a variable", "write letters, digits and underscores")
        if is_secret_name(name):
            rule = "would stand in every script for all to read (its value is not shown)"
            raise ConfigError(field, None, rule, f"export {name} before sbatch, which hands it on to jobs")
        if name == "OMP_NUM_THREADS" or (name in _INTERFACE_VARIABLES and cfg.cluster.interface is not None):
            own = "threads" if name == "OMP_NUM_THREADS" else "interface"
            raise ConfigError(field, value, f"is set by cluster.{own}", f"drop it, and set cluster.{own}")


def lines_are_options(cfg: SlurmGenRun) -> None:
    """Further lines are long options of sbatch, of which none has a field of its own."""
    for position, line in enumerate(cfg.cluster.lines):
        field, name = f"cluster.lines[{position}]", re.split(r"[=\s]", line)[0]
        if not line.startswith("--") or "\n" in line:
            raise ConfigError(field, line, "must be a long option of sbatch", "write it as --constraint=h100")
        if name in _SET_BY_FIELDS:
            raise ConfigError(field, line, f"{name} has a setting of its own", "set that, and drop the line")
        if name in _SET_BY_SCRIPTS:
            raise ConfigError(field, line, f"the scripts set {name} themselves", "drop it, or give it to sbatch")


def directives_are_words(cfg: SlurmGenRun) -> None:
    """Slurm ends an option at the first space."""
    cluster = cfg.cluster
    texts = {
        "out": cfg.out, "cluster.partition": cluster.partition, "cluster.account": cluster.account,
        "cluster.qos": cluster.qos, "cluster.ingest.partition": cluster.ingest.partition,
        "cluster.encode.partition": cluster.encode.partition,
    }  # fmt: skip
    for name, text in texts.items():
        if text is not None and text.split() != [text]:
            raise ConfigError(name, text, "holds a space, at which Slurm would end it", "take one without")


def container_or_venv(cfg: SlurmGenRun) -> None:
    """An image holds its own Python."""
    container = cfg.cluster.container
    if container.image is not None and cfg.cluster.venv is not None:
        rule = f"has no effect with cluster.container.image={container.image!r}"
        raise ConfigError("cluster.venv", cfg.cluster.venv, rule, "take cluster.venv=null")
    if container.image is None:
        rule, remedy = "has no effect without cluster.container.image", "name an image, or drop it"
        refuse_set("cluster.container", container, ("mounts", "runner"), rule, remedy)


def train_words_are_settings(cfg: SlurmGenRun) -> None:
    """What has a place of its own in the scripts is not said again as a word of `megavideo train`."""
    for position, word in enumerate(cfg.words):
        key = word.split("=")[0]
        if "=" not in word or any(space in word for space in "\n'"):
            raise ConfigError(f"words[{position}]", word, "must be KEY=VALUE", "write it as words=['optim.lr=1e-4']")
        if key in ("run", "curriculum", "stage"):
            remedy = f"write {word}" if key != "stage" else "drop it: each stage has a script"
            raise ConfigError(f"words[{position}]", word, f"{key} has a setting of its own", remedy)


def evaluation_has_prompts(cfg: SlurmGenRun) -> None:
    """The finished run is sampled by a file with one prompt a line; told before it has trained for days."""
    if not cfg.prompts:
        raise ConfigError("prompts", [], "must hold at least one", "say what the finished run shall show")
    for position, prompt in enumerate(cfg.prompts):
        if prompt.strip() != prompt or "\n" in prompt:
            raise ConfigError(
                f"prompts[{position}]", prompt, "must be one line of words", "write it without spaces around it"
            )


_INTERFACE_VARIABLES = ("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME")

CLUSTER_RULES = (
    texts_are_lines,
    tasks_are_gpus,
    times_are_times,
    memory_is_slurms,
    environment_names_are_variables,
    lines_are_options,
    directives_are_words,
    container_or_venv,
    train_words_are_settings,
    evaluation_has_prompts,
)
