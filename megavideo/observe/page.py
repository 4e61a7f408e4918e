"""Pages of one file: a frame and a style that all share, templates of the rooms, and pictures put into the text."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

from megavideo.border.secrets import Secrets

_FRAME = "megavideo.observe"


def data_uri(kind: str, data: bytes) -> str:
    """An address that holds `data`, of the MIME type `kind`, itself."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def render(template: str, values: Mapping[str, Any], package: str = _FRAME) -> str:
    """The HTML of a file in the folder `templates` of `package`, which extends `page.html.j2` of this one.

    Values are shown without secrets, and escaped, but for what a template marks as safe. A name of the template that is
    missing in `values` is an error.
    """
    import jinja2

    secrets = Secrets.of_process()

    def shown(value: Any) -> Any:
        """A picture in the page and what a template made are not looked through."""
        whole = isinstance(value, str) and not hasattr(value, "__html__") and not value.startswith("data:")
        return secrets.hide(value) if whole else value

    environment = jinja2.Environment(
        loader=jinja2.ChoiceLoader([jinja2.PackageLoader(name) for name in dict.fromkeys((package, _FRAME))]),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        finalize=shown,
    )
    return environment.get_template(template).render(values)
