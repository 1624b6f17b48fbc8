"""`make docs`: the site builds strictly, loads nothing from outside, and its links lead somewhere."""

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

ROOT = Path(__file__).parents[1]


class Links(HTMLParser):
    """What a page loads, where it leads, and the anchors that it has."""

    def __init__(self):
        super().__init__()
        self.loads: list[str] = []
        self.leads: list[str] = []
        self.anchors: set[str] = set()

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.anchors |= {found[key] for key in ("id", "name") if found.get(key)}
        if tag == "a" and found.get("href"):
            self.leads.append(found["href"])
        elif tag == "link" and found.get("rel") not in ("canonical", "next", "prev"):
            self.loads.append(found.get("href", ""))
        elif tag in ("script", "img", "iframe", "source", "video", "audio") and found.get("src"):
            self.loads.append(found["src"])


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> dict[Path, Links]:
    """The built pages."""
    for package in ("mkdocs", "material", "mkdocstrings"):
        pytest.importorskip(package, reason="needs the packages of xrvlm[docs]")
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run([sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)],
                          cwd=ROOT, capture_output=True, text=True, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"})
    assert done.returncode == 0, done.stdout + done.stderr
    pages = {}
    for path in folder.rglob("*.html"):
        pages[path] = Links()
        pages[path].feed(path.read_text(encoding="utf-8"))
    return pages


def test_the_site_requests_nothing_from_outside(site):
    assert len(site) > 30
    (root,) = {path.parent for path in site if path.name == "404.html"}
    outside = {load for links in site.values() for load in links.loads if urlsplit(load).scheme in ("http", "https")
               or load.startswith("//")}
    assert outside == set()
    outside = re.compile(r"url\(\s*['\"]?(https?:)?//")
    assert not [path for path in root.rglob("*.css") if outside.search(path.read_text(encoding="utf-8"))]


def test_links_and_anchors_of_the_site_resolve(site):
    broken = []
    for path, links in site.items():
        if path.name == "404.html":              # its links are from the root of a server
            continue
        for link in links.leads + links.loads:
            parts = urlsplit(link)
            if parts.scheme or link.startswith("//"):
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            no_anchor = target in site and unquote(parts.fragment) not in {"", *site[target].anchors}
            if no_anchor or not target.exists():
                broken.append(f"{path.name}: {link}")
    assert broken == []
