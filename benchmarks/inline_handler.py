"""The obvious handler: a Flask app that lists and downloads in the webhook itself, with `requests` and `open()`.

`python -m benchmarks.inline_handler BASE_URL KEY FOLDER`. No authentication, no retries, no record.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from urllib.parse import quote

import flask
import requests
from werkzeug.serving import make_server

from benchmarks.processes import announce


def app(base_url: str, key: str, folder: Path) -> flask.Flask:
    made = flask.Flask(__name__)
    session = requests.Session()
    session.trust_env = False
    session.headers["Authorization"] = f"Bearer {key}"

    @made.post("/")
    def deliver() -> dict[str, str]:
        message = f"{base_url}/messages/{quote(flask.request.json['id'], safe='')}/attachments"  # type: ignore[index]
        listed = session.get(message, timeout=30)
        listed.raise_for_status()
        for number, attachment in enumerate(listed.json()["attachments"]):
            url = f"{message}/{quote(attachment['id'], safe='')}/download"
            with session.get(url, stream=True, timeout=300) as answer, (folder / f"{number}.bin").open("wb") as file:
                answer.raise_for_status()
                for chunk in answer.iter_content(64 * 1024):
                    file.write(chunk)
        return {"status": "success", "message": "Saved."}

    return made


if __name__ == "__main__":
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # no line for each request
    server = make_server("127.0.0.1", 0, app(sys.argv[1], sys.argv[2], Path(sys.argv[3])), threaded=True)
    announce(server.port)
    server.serve_forever()
