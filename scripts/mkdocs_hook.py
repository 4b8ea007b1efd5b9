"""What the site has besides docs/: every file of the repository that its pages link to, under the same path."""

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files, InclusionLevel

_ROOT = Path(__file__).parents[1]
_LINK = re.compile(r"(?<=\]\()[^)#\s]+")


def on_files(files: Files, config: Any) -> Files:
    """Add what is linked, and what is linked from there."""
    pages = list(files.documentation_pages())
    for page in pages:
        for link in _LINK.findall(page.content_string):
            path = _path(page, link)
            if (_ROOT / path).is_file() and (uri := _uri(path)) not in files.src_uris:
                level = InclusionLevel.NOT_IN_NAV
                file = File.generated(config, uri, abs_src_path=str(_ROOT / path), inclusion=level)
                files.append(file)
                if file.is_documentation_page():
                    pages.append(file)
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Links as they are on GitHub become links within the site."""

    def within(match: re.Match[str]) -> str:
        uri = _uri(_path(page.file, match[0]))
        here = posixpath.dirname(page.file.src_uri)
        return posixpath.relpath(uri, here or ".") if uri in files.src_uris else match[0]

    return _LINK.sub(within, markdown)


def _path(page: File, link: str) -> str:
    """Where a link leads from the repository's root; of a folder its README.md."""
    own = page.src_uri if page.generated_by else f"docs/{page.src_uri}"
    path = posixpath.normpath(posixpath.join(posixpath.dirname(own), link))
    return f"{path}/README.md" if (_ROOT / path).is_dir() else path


def _uri(path: str) -> str:
    """The site's name of a file of the repository."""
    return path.removeprefix("docs/")
