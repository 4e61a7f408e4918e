"""What a sample is given besides its prompt, and the conditioning task that this makes."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from megavideo.config.schema.sample import Mode, SampleRun
from megavideo.errors import ConfigError

_MODES: dict[tuple[str, ...], tuple[Mode, ...]] = {
    ("image",): ("image_to_video",),
    ("image", "last_image"): ("interpolation",),
    ("video",): ("extension", "interpolation"),
    ("video", "mask"): ("inpainting",),
    ("image", "mask"): ("inpainting",),
}


@dataclass(frozen=True)
class GivenFiles:
    """Paths of the pictures and videos that one sample is given."""

    image: str | None = None
    last_image: str | None = None
    video: str | None = None
    mask: str | None = None


def mode_of(files: GivenFiles, cfg: SampleRun) -> Mode | None:
    """The task that the files make, with `cfg.mode` where they leave a choice; None where nothing is given.

    Raises ConfigError for files that make no task, and for settings that have no effect on it.
    """
    names = tuple(name for name, path in asdict(files).items() if path is not None)
    if not names:
        if cfg.mode is not None:
            raise ConfigError("mode", cfg.mode, "has no effect without an image or a video", "add image= or video=")
        mode = None
    else:
        mode = _mode_of_files(names, files, cfg)
    if cfg.given_frames is not None and mode != "extension":
        rule, remedy = "has no effect without mode=extension", "drop it, or give video= and mode=extension"
        raise ConfigError("given_frames", cfg.given_frames, rule, remedy)
    return mode


def _mode_of_files(names: tuple[str, ...], files: GivenFiles, cfg: SampleRun) -> Mode:
    legal = _MODES.get(names)
    if legal is None:
        known = "; ".join(" and ".join(f"{name}=" for name in combination) for combination in _MODES)
        raise ConfigError(
            names[-1],
            getattr(files, names[-1]),
            f"{' and '.join(names)} together make no task",
            f"give one of: {known}",
        )
    if cfg.mode is None and len(legal) > 1:
        raise ConfigError("mode", None, f"{names[0]}= alone leaves a choice", f"add mode={' or mode='.join(legal)}")
    if cfg.mode is not None and cfg.mode not in legal:
        takes = [
            " and ".join(f"{name}=" for name in combination) for combination, of in _MODES.items() if cfg.mode in of
        ]
        rule = f"does not take what is given ({', '.join(names)})"
        raise ConfigError("mode", cfg.mode, rule, f"give {' or '.join(takes)}, or drop mode=")
    if names == ("image", "mask") and cfg.frames != 1:
        rule = "with a mask one image is inpainted, and a video would need more"
        raise ConfigError("frames", cfg.frames, rule, "take frames=1, or give video= in place of image=")
    return cfg.mode or legal[0]
