"""The page's parts and its server, as Gradio wants them. Importing this module imports gradio."""

import atexit
import os
import signal
import threading
from typing import Any

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")     # read as gradio is imported

import gradio as gr
from gradio.themes import Default
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse

from xrvlm.errors import UserError, option
from xrvlm.reporting.serve.models import Model
from xrvlm.reporting.serve.page import HERE, Page, PageLimits

TITLE = "xrvlm"
SPARE = 1_000_000                        # bytes of a request beside its photos
FONTS, MONOSPACED = ["system-ui", "sans-serif"], ["ui-monospace", "monospace"]      # none from elsewhere


def interface(page: Page, kept: int) -> gr.Blocks:
    """The page; uploaded files are deleted after `kept` seconds."""
    names, limits = list(page.models), page.limits
    with gr.Blocks(title=TITLE, delete_cache=(kept, kept), analytics_enabled=False) as blocks:
        gr.Markdown("# Photos in, answers out")
        with gr.Row():
            with gr.Column(scale=1, min_width=280):
                model = gr.Dropdown(names, value=names[0], label="Model", visible=len(names) > 1)
                about = gr.Markdown(_about(page, names[0]))
                photos = gr.File(file_count="multiple", type="filepath", height=180,
                                 label=f"Photos: at most {limits.uploads}, {limits.megabytes:g} MB each")
                _uploads_alone(photos)
                parts = gr.Checkbox(True, label="Show the parts that decided",
                                    visible=any(each.explains for each in page.models.values()))
                button = gr.Button("Answer", variant="primary")
            with gr.Column(scale=2, min_width=320):
                shown = gr.HTML(page.html(names[0], [], False), elem_id="answers")
        asked, data = gr.Button(visible=False), gr.JSON(visible=False)     # of the endpoint, for programs
        model.change(lambda name: _about(page, name), model, about, api_visibility="private", queue=False)
        together: dict[str, Any] = {"concurrency_limit": 1, "concurrency_id": "answer"}
        button.click(_told(page.html), [model, photos, parts], shown, api_visibility="private", **together)
        asked.click(_told(page.rows), [model, photos], data, api_name="answer",
                    api_description="The answers of a model about uploaded photos, in their order.", **together)
    return blocks.queue(max_size=limits.waiting, api_open=False)       # nobody passes the queue by


def _uploads_alone(photos: gr.File) -> None:
    """An address in the place of an uploaded file is not fetched."""
    moved = photos.async_move_resource_to_block_cache

    async def checked(path: Any) -> str | None:
        if "://" in str(path) or str(path).lower().startswith(("http:", "https:")):
            raise gr.Error("give photos as files: addresses are not fetched", print_exception=False)
        return await moved(path)

    # a subclass would be drawn as a component of its own, which the page does not know
    setattr(photos, "async_move_resource_to_block_cache", checked)     # noqa: B010


def launch(blocks: gr.Blocks, host: str, port: int, limits: PageLimits, *, wait: bool) -> gr.Blocks:
    """Start the server; UserError where the port is taken."""
    most = int(limits.uploads * limits.megabytes * 1e6) + SPARE
    try:
        _, address, _ = blocks.launch(
            server_name=host, server_port=port or _free(host), share=False, quiet=True, prevent_thread_lock=True,
            max_file_size=int(limits.megabytes * 1e6), show_error=False, ssr_mode=False, enable_monitoring=False,
            app_kwargs={"middleware": [Middleware(_Bounded, most=most)]},
            footer_links=["api"], pwa=False, mcp_server=False,
            theme=Default(primary_hue="teal", font=FONTS, font_mono=MONOSPACED),
            css=(HERE / "page.css").read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot open a page at {host}:{port}: the port is taken, or {host} is no address of this "
                        f"machine; choose another {option('port')}, 0 takes one that is free") from error
    print(f"{address}  (interrupt to end)", flush=True)
    atexit.register(Model.close)         # a thread that still computes would abort the process as it ends
    if wait:
        if threading.current_thread() is threading.main_thread():
            # a server that is told to end deletes the uploads, too, as one that is interrupted does
            signal.signal(signal.SIGTERM, signal.default_int_handler)
        blocks.block_thread()
    return blocks


class _Bounded:
    """Refuses a request of more than `most` bytes before it is read, and one that does not say how many it has."""

    def __init__(self, app: Any, most: int):
        self.app, self.most = app, most

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http" and scope["method"] == "POST":
            length = dict(scope["headers"]).get(b"content-length", b"")
            if not length.isdigit() or int(length) > self.most:
                return await PlainTextResponse("too large", 413)(scope, receive, send)
        return await self.app(scope, receive, send)


def _about(page: Page, name: str) -> str:
    return page.models[name].about if name in page.models else ""


def _free(host: str) -> int:
    import socket

    with socket.socket() as probe:
        probe.bind((host, 0))
        return probe.getsockname()[1]


def _told(answer: Any) -> Any:
    """The same function, whose mistakes a visitor is told in a line."""
    def told(*arguments: Any) -> Any:
        try:
            return answer(*arguments)
        except UserError as error:
            raise gr.Error(str(error), print_exception=False) from None
    return told
