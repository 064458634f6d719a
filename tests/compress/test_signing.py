"""A signature says who wrote a folder; any other folder, key or signature is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from compress.errors import ArtifactError
from compress.signing import sign_folder, signature_path, verify_signature

cryptography = pytest.importorskip("cryptography.hazmat.primitives.asymmetric.ec", reason="cryptography is missing")
pytest.importorskip(
    "model_signing.signing", reason="model-signing is not installed, or pyOpenSSL is", exc_type=ImportError
)


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two pairs of keys, one of them protected, and a pair of another kind."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec, rsa

    folder = tmp_path_factory.mktemp("keys")
    plain, protected = serialization.NoEncryption(), serialization.BestAvailableEncryption(b"secret")
    made = (
        ("mine", ec.generate_private_key(ec.SECP256R1()), plain),
        ("other", ec.generate_private_key(ec.SECP384R1()), protected),
        ("rsa", rsa.generate_private_key(65537, 2048), plain),
    )
    for name, key, encryption in made:
        pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, encryption)
        (folder / f"{name}.pem").write_bytes(pem)
        public = key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        (folder / f"{name}.pub").write_bytes(public)
    return folder


@pytest.fixture
def signed(tmp_path: Path, keys: Path) -> Path:
    folder = tmp_path / "deploy"
    (folder / "golden").mkdir(parents=True)
    (folder / "model.onnx").write_bytes(b"a model")
    (folder / "golden" / "images.npy").write_bytes(b"images")
    sign_folder(folder, signature_path(folder), private_key=keys / "mine.pem")
    return folder


def refusal(folder: Path, public_key: Path, signature: Path | None = None) -> str:
    with pytest.raises(ArtifactError) as caught:
        verify_signature(folder, signature or folder.with_name("deploy.sig"), public_key=public_key)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_signed_folder_passes_wherever_it_lies(signed: Path, keys: Path, tmp_path: Path) -> None:
    assert signature_path(signed) == tmp_path / "deploy.sig"
    verify_signature(signed, tmp_path / "deploy.sig", public_key=keys / "mine.pub")
    signed.rename(tmp_path / "student")
    verify_signature(tmp_path / "student", tmp_path / "deploy.sig", public_key=keys / "mine.pub")


def test_links_count_as_what_they_lead_to(signed: Path, keys: Path, tmp_path: Path) -> None:
    (signed / "model.onnx").rename(tmp_path / "cached")
    (signed / "model.onnx").symlink_to(tmp_path / "cached")
    verify_signature(signed, signature_path(signed), public_key=keys / "mine.pub")


def test_changed_byte_is_refused_by_the_name_of_its_file(signed: Path, keys: Path) -> None:
    (signed / "golden" / "images.npy").write_bytes(b"imagez")
    assert "Hash mismatch for 'golden/images.npy'" in refusal(signed, keys / "mine.pub")


@pytest.mark.parametrize("name", ["new.txt", ".gitignore", "golden/.hidden"])
def test_added_file_is_refused(signed: Path, keys: Path, name: str) -> None:
    (signed / name).write_text("x")
    assert name in refusal(signed, keys / "mine.pub")


def test_missing_file_is_refused(signed: Path, keys: Path) -> None:
    (signed / "model.onnx").unlink()
    assert "model.onnx" in refusal(signed, keys / "mine.pub")


def test_another_key_is_refused(signed: Path, keys: Path) -> None:
    assert "by this key" in refusal(signed, keys / "other.pub")
    assert "is no elliptic curve public key" in refusal(signed, keys / "mine.pem")
    assert "rsa.pub" in refusal(signed, keys / "rsa.pub")


@pytest.mark.parametrize("content", ["", "{}", "no bundle", "[]"])
def test_damaged_signature_is_refused(signed: Path, keys: Path, tmp_path: Path, content: str) -> None:
    (tmp_path / "bad.sig").write_text(content)
    assert "bad.sig is not the signature" in refusal(signed, keys / "mine.pub", tmp_path / "bad.sig")


def test_missing_files_are_named(signed: Path, keys: Path, tmp_path: Path) -> None:
    assert "the signature" in refusal(signed, keys / "mine.pub", tmp_path / "none.sig")
    assert "the public key" in refusal(signed, tmp_path / "none.pub")
    with pytest.raises(ArtifactError, match="the private key"):
        sign_folder(signed, tmp_path / "x.sig", private_key=tmp_path / "none.pem")


def test_key_with_a_password_signs_with_it_and_not_without(signed: Path, keys: Path, tmp_path: Path) -> None:
    sign_folder(signed, tmp_path / "x.sig", private_key=keys / "other.pem", password="secret")
    verify_signature(signed, tmp_path / "x.sig", public_key=keys / "other.pub")
    for password in (None, "wrong"):
        with pytest.raises(ArtifactError, match=r"other\.pem cannot sign"):
            sign_folder(signed, tmp_path / "y.sig", private_key=keys / "other.pem", password=password)


@pytest.mark.parametrize("name", ["rsa.pem", "mine.pub"])
def test_key_of_another_kind_cannot_sign(signed: Path, keys: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(ArtifactError, match="cannot sign"):
        sign_folder(signed, tmp_path / "x.sig", private_key=keys / name)


def test_signature_inside_the_folder_is_refused(signed: Path, keys: Path) -> None:
    with pytest.raises(ArtifactError, match="put it beside it"):
        sign_folder(signed, signed / "deploy.sig", private_key=keys / "mine.pem")
