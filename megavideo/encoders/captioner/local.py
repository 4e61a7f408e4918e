"""Language and vision-language models from folders of transformers: safetensors only, no code of the folder runs."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from jinja2 import TemplateError
from safetensors import SafetensorError

from megavideo.encoders.captioner.answer import Answer, Request, to_answer
from megavideo.encoders.pretrained import PretrainedFolder, compute_device, open_pretrained
from megavideo.errors import ConfigError, DataError

_UNLOADABLE = (OSError, ValueError, RuntimeError, ImportError, TypeError, KeyError, AttributeError, SafetensorError)
_PART = "text_encoder"


class LocalModel:
    """A model of transformers with its tokenizer or processor.

    Texts are generated greedily, so that the same clip and prompt get the same caption. `frames_as` is how the model
    is shown frames, `images` or `video`; None is a model of text alone.
    """

    def __init__(self, section: str, path: str | None, max_new_tokens: int, frames_as: str | None) -> None:
        self._section = section
        self._field = f"{section}.path"
        self._max_new_tokens = max_new_tokens
        self._frames_as = frames_as
        self._device = compute_device()
        folder = open_pretrained(self._field, path, _PART)
        self.identity: Mapping[str, str] = {"model": folder.fingerprint}
        self._processor = self._load_processor(folder)
        self._tokenizer = getattr(self._processor, "tokenizer", self._processor)
        self._tokenizer.padding_side = "left"  # so that all texts of a batch begin at one place
        if self._tokenizer.pad_token is None:
            self._tokenizer.pad_token = self._tokenizer.eos_token
        self._template = self._chat_template(folder)
        self._model = self._load_model(folder).to(self._device)

    def answer(self, requests: Sequence[Request]) -> list[Answer | DataError]:
        """Answers in the order of the requests.

        Raises ConfigError where the batch does not fit into memory or the folder's chat template cannot be used.
        """
        try:
            inputs = self._inputs(requests)
        except TemplateError as error:
            rule = f"its chat template cannot be used: {error}"
            raise ConfigError(self._field, None, rule, "take an instruct model as it was published") from error
        except (ValueError, IndexError) as error:
            if len(requests) > 1:  # one clip must not take the others with it
                return [answer for request in requests for answer in self.answer([request])]
            return [DataError(f"the model's processor refuses it: {error}")]
        try:
            return self._generate(inputs)
        except torch.OutOfMemoryError as error:
            rule = "so many clips at a time do not fit into the GPU's memory"
            raise ConfigError(f"{self._section}.batch", len(requests), rule, "take a smaller batch") from error

    @torch.inference_mode()
    def _generate(self, inputs: Mapping[str, Any]) -> list[Answer | DataError]:
        dtype = self._model.dtype
        # Many tokenizers give token types, which few models take.
        unused = {"token_type_ids"} - set(inspect.signature(self._model.forward).parameters)
        moved = {
            name: value.to(self._device, dtype if value.is_floating_point() else value.dtype)
            for name, value in inputs.items()
            if isinstance(value, torch.Tensor) and name not in unused
        }
        sampling_off: dict[str, Any] = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        generated = self._model.generate(
            **moved, **sampling_off, max_new_tokens=self._max_new_tokens, pad_token_id=self._tokenizer.pad_token_id
        )
        if not self._model.config.is_encoder_decoder:
            generated = generated[:, moved["input_ids"].shape[1] :]
        ends = self._model.generation_config.eos_token_id
        ends = set(ends if isinstance(ends, list) else [ends])
        texts = self._tokenizer.batch_decode(generated, skip_special_tokens=True)
        rows = generated.tolist()
        return [to_answer(text, not ends & set(row)) for text, row in zip(texts, rows, strict=True)]

    def _inputs(self, requests: Sequence[Request]) -> Mapping[str, Any]:
        options: dict[str, Any] = {"enable_thinking": False} if self._frames_as is None else {}
        if self._frames_as == "video":
            views = [request.view for request in requests if request.view is not None]
            options |= {
                "do_sample_frames": False,
                "video_metadata": [
                    {
                        "total_num_frames": view.total,
                        "fps": view.fps,
                        "duration": view.total / view.fps,
                        "frames_indices": list(view.numbers),
                    }
                    for view in views
                ],
            }
        inputs: Mapping[str, Any] = self._processor.apply_chat_template(
            [[{"role": "user", "content": self._content(request)}] for request in requests],
            chat_template=self._template,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            padding=True,
            add_generation_prompt=True,
            **options,
        )
        return inputs

    def _content(self, request: Request) -> Any:
        if self._frames_as is None:
            return request.prompt
        assert request.view is not None
        frames = request.view.frames
        shown: list[dict[str, Any]] = [{"type": "video", "video": frames}]
        if self._frames_as == "images":
            shown = [{"type": "image", "image": frame} for frame in frames]
        return [*shown, {"type": "text", "text": request.prompt}]

    def _load_processor(self, folder: PretrainedFolder) -> Any:
        from transformers import AutoProcessor, AutoTokenizer

        load = AutoTokenizer.from_pretrained if self._frames_as is None else AutoProcessor.from_pretrained
        processor = self._loaded(folder, load, "its tokenizer or processor")
        if not hasattr(processor, "apply_chat_template"):
            kind = type(processor).__name__
            raise ConfigError(self._field, str(folder.path), f"holds no processor of a chat model ({kind})", _INSTRUCT)
        if self._frames_as == "video" and getattr(processor, "video_processor", None) is None:
            rule = f"{type(processor).__name__} takes no video"
            raise ConfigError(f"{self._section}.frames_as", "video", rule, f"take {self._section}.frames_as=images")
        return processor

    def _chat_template(self, folder: PretrainedFolder) -> str:
        template = getattr(self._processor, "chat_template", None) or self._tokenizer.chat_template
        if isinstance(template, Mapping):
            template = template.get("default")
        if not template:
            raise ConfigError(self._field, str(folder.path), "its model has no chat template", _INSTRUCT)
        return str(template)

    def _load_model(self, folder: PretrainedFolder) -> Any:
        from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

        auto: Any = AutoModelForCausalLM if self._frames_as is None else AutoModelForImageTextToText
        stored = folder.config.get("dtype") or folder.config.get("torch_dtype")
        on_gpu = self._device.type == "cuda"
        # A CPU has no speed to gain from float16.
        dtype = "auto" if on_gpu else torch.bfloat16 if stored == "bfloat16" else torch.float32

        def load(path: str, **options: Any) -> Any:
            return auto.from_pretrained(path, use_safetensors=True, dtype=dtype, **options)

        return self._loaded(folder, load, "its weights").eval().requires_grad_(False)

    def _loaded(self, folder: PretrainedFolder, load: Callable[..., Any], what: str) -> Any:
        try:
            return load(str(folder.path), local_files_only=True, trust_remote_code=False)
        except _UNLOADABLE as error:
            kind = folder.config.get("model_type")
            rule = f"{what} (of a model of type {kind}) cannot be loaded: {_first_line(error)}"
            raise ConfigError(self._field, str(folder.path), rule, "check the folder's files and its kind") from error


_INSTRUCT = "take an instruct model, saved with its chat template"


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
