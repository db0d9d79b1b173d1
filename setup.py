"""What setup.cfg cannot say: PyPI shows the README alone, where a link to a file needs a whole address."""

import re
from pathlib import Path

from setuptools import setup

ADDRESS = ""  # of the repository, as "https://github.com/OWNER/numpy_gpt2"; "" where there is none


def for_pypi(page, address):
    """Markdown whose relative links are absolute. Without an address they become plain words, and pictures go."""

    def whole(link):
        picture, words, path = link.groups()
        if address:
            return f"{picture}[{words}]({address}/{'raw' if picture else 'blob'}/HEAD/{path})"
        return "" if picture else words

    return re.sub(r"(!?)\[([^\]]*)\]\((?!https?:|#)([^)\s]+)\)", whole, page)


if __name__ == "__main__":
    readme = Path(__file__).with_name("README.md").read_text(encoding="utf-8")
    setup(long_description=for_pypi(readme, ADDRESS))
