"""A web server on loopback for the files of a folder, with byte ranges and ETags: https with a certificate of its own, or plain http."""

import datetime
import ipaddress
import re
import ssl
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from faulty_proxy import Handler, Server

RANGE = re.compile(r"bytes=(\d+)-(\d*)")


@dataclass
class FileServer:
    """A running server."""

    address: str
    folder: Path
    certificate: Path | None
    """to be trusted by SSL_CERT_FILE; None for plain http"""
    requests: list[tuple[str, str, int]] = field(default_factory=list)
    """method, path and bytes of the body of each answer"""

    @property
    def bytes_read(self) -> int:
        return sum(size for _, _, size in self.requests)


class _Handler(Handler):
    site: FileServer

    def do_GET(self) -> None:
        name = unquote(urlsplit(self.path).path).strip("/")
        file = (self.site.folder / name).resolve()
        if not file.is_relative_to(self.site.folder.resolve()) or not file.is_file():
            self._answer(404, b"", {})
            return
        with open(file, "rb") as opened:
            size = file.stat().st_size
            about = {"Accept-Ranges": "bytes", "ETag": f'"{file.stat().st_mtime_ns:x}-{size:x}"'}
            asked = RANGE.fullmatch(self.headers.get("Range", ""))
            if asked is None:
                self._answer(200, opened.read(), about)
                return
            first = int(asked[1])
            last = min(int(asked[2] or size), size - 1)
            if first >= size:
                self._answer(416, b"", {"Content-Range": f"bytes */{size}"})
                return
            opened.seek(first)
            body = opened.read(last + 1 - first)
            self._answer(206, body, about | {"Content-Range": f"bytes {first}-{last}/{size}"})

    do_HEAD = do_GET

    def _answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        sent = body if self.command == "GET" else b""
        self.site.requests.append((self.command, self.path, len(sent)))
        self.send_response_only(status)
        for name, value in (headers | {"Content-Length": str(len(body))}).items():
            self.send_header(name, value)
        self.send_header("Last-Modified", self.date_time_string(0))
        self.end_headers()
        self.wfile.write(sent)
        self.wfile.flush()


@contextmanager
def file_server(folder: Path, secrets: Path | None = None, port: int = 0) -> Iterator[FileServer]:
    """Serves a folder by threads of this process. secrets: a folder for certificate and key, which make it https. port: 0 for
    a free one."""
    handler = type("Handler", (_Handler,), {})
    server = Server(("127.0.0.1", port), handler)
    certificate = None
    if secrets is not None:
        certificate, key = write_certificate(secrets)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    scheme = "http" if secrets is None else "https"
    handler.site = site = FileServer(f"{scheme}://127.0.0.1:{server.server_address[1]}", folder, certificate)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield site
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def write_certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 and localhost that signs itself, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    day, now = datetime.timedelta(days=1), datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - day)
        .not_valid_after(now + day)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .sign(key, hashes.SHA256())
    )
    certificate, secret = folder / "certificate.pem", folder / "key.pem"
    certificate.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    form, none = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    secret.write_bytes(key.private_bytes(serialization.Encoding.PEM, form, none))
    return certificate, secret


def main() -> None:
    """`file_server.py FOLDER [PORT]`: serves it by plain http, prints the address, and ends with its standard input."""
    with file_server(Path(sys.argv[1]), port=int((*sys.argv, "0")[2])) as site:
        print(site.address, flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()
