"""One test for each clause of what a request must pass."""

import asyncio
import json
import logging
import socket

import httpx
import pytest

from mois.serve.running import bound_socket, names_of, plain_app, token_of
from mois.serve.safety import Guard, Limits

TOKEN = "secret-of-this-server-123"
HOST = "127.0.0.1:1527"


async def app(scope, receive, send):
    body = (await receive())["body"]
    if scope["path"] == "/slow":
        await asyncio.sleep(5)
    if scope["path"] == "/broken":
        raise KeyError("/home/anna/scan.nii")
    if scope["path"] == "/wrong":
        raise ValueError("lesion=7 does not exist;\nthere is none yet.")
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"%s %d" % (scope["path"].encode(), len(body))})


def ask(path, *, method="GET", headers=None, content=None, limits=None, token=True):
    guard = Guard(app, TOKEN, names_of("127.0.0.1", 1527), limits)
    sent = {"Authorization": f"Bearer {TOKEN}"} if token else {}

    async def go():
        transport = httpx.ASGITransport(guard)
        async with httpx.AsyncClient(transport=transport, base_url=f"http://{HOST}") as client:
            return await client.request(method, path, headers={**sent, **(headers or {})}, content=content)

    return asyncio.run(go())


def test_token_in_the_header_or_as_first_part_of_the_path():
    assert ask("/healthz").text == "/healthz 0"
    assert ask(f"/{TOKEN}/healthz", token=False).text == "/healthz 0"
    for path in ("/healthz", "/wrong-token/healthz", f"/{TOKEN}", "/"):
        assert ask(path, token=False).status_code == 401
    assert ask("/healthz", headers={"Authorization": "Bearer wrong"}).status_code == 401


def test_host_of_another_name_is_refused():
    assert ask("/healthz", headers={"Host": "evil.example:1527"}).status_code == 421
    assert ask("/healthz", headers={"Host": "127.0.0.1:80"}).status_code == 421
    assert ask("/healthz", headers={"Host": "localhost:1527"}).status_code == 200


def test_page_of_another_site_is_refused():
    for headers in (
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:8000"},
        {"Sec-Fetch-Site": "cross-site"},
    ):
        answer = ask("/click", method="POST", headers=headers)
        assert answer.status_code == 403
        assert "access-control-allow-origin" not in answer.headers
    assert ask("/click", method="POST", headers={"Origin": f"http://{HOST}"}).status_code == 200
    assert ask("/click", method="OPTIONS", headers={"Origin": "http://evil.example"}).status_code == 403


def test_large_body_is_refused_before_it_is_read_and_while_it_is_read():
    assert ask("/x", method="POST", content=b"1" * 11, limits=Limits(body_bytes=10)).status_code == 413
    assert ask("/x", method="POST", headers={"Content-Length": "99999999999"}).status_code == 413

    async def without_length():
        for _ in range(20):
            yield b"1"

    assert ask("/x", method="POST", content=without_length(), limits=Limits(body_bytes=10)).status_code == 413
    assert ask("/x", method="POST", content=b"1" * 10, limits=Limits(body_bytes=10)).text == "/x 10"


def test_compressed_body_is_refused():
    assert ask("/x", method="POST", content=b"1", headers={"Content-Encoding": "gzip"}).status_code == 415


def test_slow_body_and_slow_answer_end():
    async def slowly():
        yield b"1"
        await asyncio.sleep(5)
        yield b"2"

    assert ask("/x", method="POST", content=slowly(), limits=Limits(upload_s=0.05)).status_code == 408
    assert ask("/slow", limits=Limits(request_s=0.05)).status_code == 504


def test_errors_are_one_line_and_the_log_has_no_names(caplog):
    caplog.set_level(logging.INFO, "mois.serve")
    wrong, broken = ask("/wrong"), ask("/broken")
    assert (wrong.status_code, wrong.json()["error"]) == (400, "lesion=7 does not exist; there is none yet.")
    assert broken.status_code == 500
    assert "anna" not in broken.text
    ask(f"/{TOKEN}/anna.nii", token=False)
    assert "KeyError at test_safety.py" in caplog.text
    assert "anna" not in caplog.text
    assert TOKEN not in caplog.text


def test_the_log_has_actions_and_failures_but_no_looks(caplog):
    caplog.set_level(logging.INFO, "mois.serve")
    for path, method in (("/pulse", "GET"), ("/preview/click", "POST"), ("/draw/click", "POST"), ("/wrong", "GET")):
        ask(path, method=method)
    assert [line.rpartition(" ")[0].rpartition(" ")[0] for line in caplog.messages] == [
        "POST /draw 200",
        "GET /wrong 400",
    ]


def test_routes_of_an_application_answer_errors_in_one_line():
    from fastapi.testclient import TestClient

    routes = plain_app("test")

    @routes.get("/wrong")
    def wrong():
        raise ValueError("a\nb")

    client = TestClient(routes, raise_server_exceptions=False)
    assert json.loads(client.get("/wrong").content) == {"error": "a b", "detail": "a b"}
    assert client.get("/openapi.json").status_code == 404
    assert "error" in client.get("/docs").json()


def test_token_is_made_once_for_this_user_alone(tmp_path):
    token = token_of(tmp_path / "studies")
    assert token_of(tmp_path / "studies") == token
    assert (tmp_path / "studies" / "token").stat().st_mode & 0o077 == 0
    (tmp_path / "studies" / "token").write_text("short")
    with pytest.raises(ValueError, match="holds no token"):
        token_of(tmp_path / "studies")
    (tmp_path / "studies" / "token").unlink()
    (tmp_path / "studies" / "token").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="is a link"):
        token_of(tmp_path / "studies")


def test_all_addresses_at_once_are_refused():
    with pytest.raises(ValueError, match="name the one address"):
        bound_socket("0.0.0.0", 0)
    with bound_socket("127.0.0.1", 0) as listening:
        assert listening.getsockname()[0] == "127.0.0.1"


def test_answers_do_not_wait_for_more_to_send():
    with bound_socket("127.0.0.1", 0) as listening:
        listening.listen()
        with socket.create_connection(listening.getsockname()), listening.accept()[0] as accepted:
            assert accepted.proto == socket.IPPROTO_TCP  # what asyncio asks before it sets TCP_NODELAY
