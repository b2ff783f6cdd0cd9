"""The client: its messages against hand-made bytes, the rest against the real server."""

import base64
import hashlib
import json
import socket
import struct
import threading
import time

import pytest
from onestory.tools import client
from onestory.tools.client import Client, Messages, WorkflowError
from onestory.tools.failure import Failure

TEXT, BINARY, CLOSE, PING, PONG = 0x1, 0x2, 0x8, 0x9, 0xA
EMPTY_IMAGE = {"class_type": "EmptyImage", "inputs": {"width": 64, "height": 64, "batch_size": 2, "color": 0xFF0000}}
SAVE_IMAGE = {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "client"}}


def frame(payload: bytes, opcode: int = TEXT, final: bool = True) -> bytes:
    size = len(payload)
    length = (
        bytes([size]) if size < 126 else struct.pack(">BH" if size < 1 << 16 else ">BQ", 126 + (size >> 16 > 0), size)
    )
    return bytes([opcode | 0x80 * final]) + length + payload


class Peer:
    """A server for one websocket that answers the handshake and then sends what it is told."""

    def __init__(self, first: bytes = b""):
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"ws://127.0.0.1:{self.listener.getsockname()[1]}/ws?clientId=x"
        self.first = first
        self.thread = threading.Thread(target=self.greet)
        self.thread.start()

    def greet(self) -> None:
        self.connection, _ = self.listener.accept()
        request = self.connection.recv(4096).decode()
        key = next(line.split(": ")[1] for line in request.split("\r\n") if line.startswith("Sec-WebSocket-Key"))
        accept = base64.b64encode(hashlib.sha1(f"{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11".encode()).digest())
        head = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        self.connection.sendall(head + b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n" + self.first)


@pytest.fixture
def connect():
    """Messages from a new peer; both are closed afterwards."""
    opened = []

    def connect(first: bytes = b"") -> tuple[Messages, socket.socket]:
        peer = Peer(first)
        messages = Messages(peer.url)
        peer.thread.join()
        opened.extend([messages, peer.connection, peer.listener])
        return messages, peer.connection

    yield connect
    for each in opened:
        each.close()


def test_fragments_are_joined_around_a_ping_and_binary_messages_are_skipped(connect):
    messages, peer = connect()
    parts = "one–two".encode()
    peer.sendall(frame(b"preview", BINARY, final=False) + frame(b"more", 0))
    peer.sendall(frame(parts[:4], final=False) + frame(b"are you there", PING) + frame(parts[4:], 0))
    assert messages.receive(5) == "one–two"
    head, mask, payload = (lambda data: (data[:2], data[2:6], data[6:]))(peer.recv(100))
    assert head == bytes([0x80 | PONG, 0x80 | 13])
    assert bytes(byte ^ mask[i % 4] for i, byte in enumerate(payload)) == b"are you there"


def test_a_message_may_come_byte_by_byte_across_timeouts(connect):
    messages, peer = connect()
    received = []
    for byte in frame(b"slow" * 40):
        assert received in ([], [None])
        peer.sendall(bytes([byte]))
        received = [messages.receive(0.01)]
    assert received == ["slow" * 40] or messages.receive(5) == "slow" * 40


@pytest.mark.parametrize("end", [frame(b"", CLOSE), b""], ids=["close frame", "dropped"])
def test_the_end_of_a_connection_is_one_of_its_errors(connect, end):
    messages, peer = connect()
    peer.sendall(end)
    peer.shutdown(socket.SHUT_RDWR)
    with pytest.raises(client.CONNECTION_ERRORS):
        messages.receive(5)


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "127.0.0.1:1"])
def test_no_server_is_one_sentence_with_its_address(url):
    with pytest.raises(Failure, match=r"^No ComfyUI answers at http://127.0.0.1:1: .*refused"):
        Client(url).get("/system_stats")


@pytest.mark.parametrize("url", ["http://", "http://[::1"])
def test_an_address_without_a_host_is_an_error(url):
    with pytest.raises(Failure, match="is not a server's address"):
        Client(url)


def test_a_server_on_this_machine_is_not_looked_for_behind_a_proxy(server, monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "example.com")
    here = Client(server.url)
    messages = here.open_messages()
    assert json.loads(messages.receive(10))["type"] == "status"
    messages.close()
    with pytest.raises(Failure, match="No ComfyUI answers at http://comfyui.example.org: .*refused"):
        Client("http://comfyui.example.org").get("/queue")


def test_what_a_server_refuses_is_one_sentence(server):
    with pytest.raises(client.Refused, match=r"/view\?filename=none.png does not .*: HTTP Error 404: "):
        server.download({"filename": "none.png"})


def test_a_workflow_runs_and_its_pictures_come_back(server):
    messages = []
    outputs = server.run({"1": EMPTY_IMAGE, "2": SAVE_IMAGE}, lambda kind, data: messages.append(kind))
    pictures = [server.download(image) for image in client.images(outputs, ["2"])]
    assert len(pictures) == 2 and all(data.startswith(b"\x89PNG") for data in pictures)
    assert "executing" in messages


def test_an_uploaded_picture_can_be_loaded(server):
    outputs = server.run({"1": EMPTY_IMAGE, "2": SAVE_IMAGE})
    name = server.upload("über.png", server.download(client.images(outputs, ["2"])[0]))
    assert name in server.choices("LoadImage", "image")


def test_a_dropped_websocket_loses_only_the_progress(server, monkeypatch):
    class Dropped(Messages):
        def receive(self, timeout):
            raise ConnectionError("dropped")

    monkeypatch.setattr(client, "Messages", Dropped)
    assert server.run({"1": EMPTY_IMAGE, "2": SAVE_IMAGE})["2"]["images"]


def test_a_server_without_websockets_works(server, monkeypatch):
    monkeypatch.setattr(server, "open_messages", lambda: None)
    assert server.run({"1": EMPTY_IMAGE, "2": SAVE_IMAGE})["2"]["images"]


def test_a_lost_websocket_that_stays_silent_is_noticed(server, monkeypatch):
    class Silent(Messages):
        def receive(self, timeout):
            time.sleep(0.1)

    monkeypatch.setattr(client, "Messages", Silent)
    monkeypatch.setattr(client, "PATIENCE", 0.5)
    assert server.run({"1": EMPTY_IMAGE, "2": SAVE_IMAGE})["2"]["images"]


def test_an_invalid_input_names_the_node_and_the_value(server):
    image = {**EMPTY_IMAGE, "inputs": {**EMPTY_IMAGE["inputs"], "width": -1}}
    with pytest.raises(WorkflowError, match=r"^EmptyImage \(node 1\): Value -1 smaller than min") as error:
        server.run({"1": image, "2": SAVE_IMAGE})
    assert (error.value.node_id, error.value.node_type) == ("1", "EmptyImage")


def test_a_workflow_that_is_only_partly_valid_is_refused_whole(server):
    bad = {**EMPTY_IMAGE, "inputs": {**EMPTY_IMAGE["inputs"], "width": -1}}
    workflow = {
        "1": EMPTY_IMAGE,
        "2": SAVE_IMAGE,
        "3": bad,
        "4": {**SAVE_IMAGE, "inputs": {"images": ["3", 0], "filename_prefix": "x"}},
    }
    with pytest.raises(WorkflowError, match=r"EmptyImage \(node 3\)"):
        server.run(workflow)
    assert server.get("/queue") == {"queue_running": [], "queue_pending": []}


def test_an_unknown_node_is_named(server):
    with pytest.raises(WorkflowError, match="NoSuchNode"):
        server.run({"1": {"class_type": "NoSuchNode", "inputs": {}}})


def test_an_error_inside_a_node_is_its_sentence_without_a_traceback(server):
    script = {"class_type": "OneStoryScript", "inputs": {"identity": "", "frames": "sleeping"}}
    latent = {"class_type": "OneStoryLatent", "inputs": {"story": ["1", 0], "width": 64, "height": 64, "noise": "same"}}
    save = {"class_type": "SaveLatent", "inputs": {"samples": ["2", 0], "filename_prefix": "x"}}
    with pytest.raises(WorkflowError) as error:
        server.run({"1": script, "2": latent, "3": save})
    assert (error.value.node_id, error.value.node_type) == ("1", "OneStoryScript")
    assert "identity" in error.value.message and "\n" not in error.value.message


def test_leaving_early_takes_the_workflow_off_the_server(server):
    def leave(kind, data):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        server.run({"1": {**EMPTY_IMAGE, "inputs": {**EMPTY_IMAGE["inputs"], "color": 7}}, "2": SAVE_IMAGE}, leave)
    deadline = time.monotonic() + 60
    while any(server.get("/queue").values()):
        assert time.monotonic() < deadline
        time.sleep(0.1)
