"""Image archives in one tar: what `docker save` and `skopeo copy ... oci-archive:` write.

Both forms, and archives that are both at once (`docker save` since version 25), come out as one
`ArchivedImage`. Nothing is extracted: members are read where they are, and whatever has a digest
is checked against it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Self

from snapshotter.digests import CheckedReader, check_digest
from snapshotter.errors import ImageError, InvalidArgumentError
from snapshotter.imagetar import ImageTar, digest_of_name, json_object

_MAX_INDEX_DEPTH: Final = 4
_DOCKER_LAYER: Final = "application/vnd.docker.image.rootfs.diff.tar"
_NAME_ANNOTATIONS: Final = ("io.containerd.image.name", "org.opencontainers.image.ref.name")
_ATTESTATION: Final = "vnd.docker.reference.type"
_MANIFEST_TYPES: Final = (
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
)
_INDEX_TYPES: Final = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)


@dataclass(frozen=True, slots=True)
class ImageConfig:
    """What the image says about running it, and its platform."""

    os: str
    architecture: str
    env: tuple[str, ...] = ()
    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    working_dir: str = ""
    user: str = ""

    @property
    def platform(self) -> str:
        """`os/architecture`."""
        return f"{self.os}/{self.architecture}"

    @property
    def argv(self) -> tuple[str, ...]:
        """The command of a container that gives none of its own."""
        return self.entrypoint + self.cmd


@dataclass(frozen=True, slots=True)
class ArchivedLayer:
    """A layer in the archive: digest of its uncompressed tar, and where its bytes are.

    `digest` is that of the bytes as stored, None where the archive does not say; `size` is their
    length.
    """

    diff_id: str
    media_type: str
    digest: str | None
    member: str
    size: int


@dataclass(frozen=True, slots=True)
class ArchivedImage:
    """One image of an archive: its names (tags), configuration, and layers, base first."""

    names: tuple[str, ...]
    config: ImageConfig
    layers: tuple[ArchivedLayer, ...]


class ImageArchive:
    """An open image tar; a context manager."""

    def __init__(self, tar: ImageTar) -> None:
        self._tar = tar
        self.path = tar.path

    @classmethod
    def open(cls, path: Path, *, spool_directory: Path) -> Self:
        """Open an archive; `spool_directory` is for one that is itself compressed.

        Raises ImageError for what is no tar, FileNotFoundError, UnavailableError.
        """
        return cls(ImageTar.open(path, spool_directory=spool_directory))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._tar.__exit__(*error)

    def image(self, *, name: str | None = None, platform: str = "linux/amd64") -> ArchivedImage:
        """The one image of the archive, or the one called `name`, for `platform` (os/arch).

        Raises ImageError: none or several fit, not the platform, damaged, layers missing.
        """
        if "manifest.json" in self._tar:
            image = self._docker_image(name, platform)
        elif "index.json" in self._tar:
            image = self._oci_image(name, platform)
        else:
            raise ImageError(
                f"{self.path} holds neither manifest.json (docker save) nor index.json (OCI"
                " layout); it is no image archive"
            )
        found = image.config.platform
        if found != platform:
            raise ImageError(f"the image in {self.path} is for {found}, not for {platform}")
        return image

    def open_layer(
        self, layer: ArchivedLayer, *, watch: Callable[[int], None] | None = None
    ) -> CheckedReader:
        """A layer's bytes as stored; call its `finish` after reading. One at a time.

        `watch` is called with the position now and then.
        """
        return self._tar.open_member(layer.member, digest=layer.digest, watch=watch)

    # -- docker save

    def _docker_image(self, name: str | None, platform: str) -> ArchivedImage:
        entries = [
            json_object(entry, "manifest.json") for entry in self._tar.json_list("manifest.json")
        ]
        named = [(_strings(entry.get("RepoTags"), "RepoTags"), entry) for entry in entries]
        if name is not None:
            named = [(tags, entry) for tags, entry in named if _is_called(name, tags)]
        images = [self._docker_entry(tags, entry) for tags, entry in named]
        return self._only(images, name, platform, [tag for tags, _ in named for tag in tags])

    def _docker_entry(self, tags: tuple[str, ...], entry: Mapping[str, Any]) -> ArchivedImage:
        config_name = _text(entry.get("Config"), "Config")
        raw = self._tar.json_object(config_name, digest=digest_of_name(config_name))
        config, diff_ids = self._config(raw)
        names = _strings(entry.get("Layers"), "Layers")
        self._same_number(names, diff_ids)
        sources = entry.get("LayerSources")
        sources = sources if isinstance(sources, dict) else {}
        layers = []
        for member, diff_id in zip(names, diff_ids, strict=True):
            source = sources.get(diff_id)
            media_type = source.get("mediaType") if isinstance(source, dict) else None
            layers.append(
                ArchivedLayer(
                    diff_id,
                    media_type if isinstance(media_type, str) else _DOCKER_LAYER,
                    digest_of_name(member),
                    member,
                    self._tar.size(member),
                )
            )
        return ArchivedImage(tags, config, tuple(layers))

    # -- OCI layout

    def _oci_image(self, name: str | None, platform: str) -> ArchivedImage:
        if "oci-layout" in self._tar:
            layout = self._tar.json_object("oci-layout")
            version = _text(layout.get("imageLayoutVersion"), "imageLayoutVersion")
            if not version.startswith("1."):
                raise ImageError(f"{self.path} has OCI layout version {version!r}, expected 1.x")
        index = self._tar.json_object("index.json")
        descriptors = _descriptors(index.get("manifests"), "index.json")
        names = [found for descriptor in descriptors for found in _names(descriptor)]
        if name is not None:
            descriptors = [item for item in descriptors if _is_called(name, _names(item))]
        images = []
        for descriptor in descriptors:
            for manifest in self._manifests(descriptor, platform, depth=0):
                images.append(self._oci_manifest(_names(descriptor), manifest))
        return self._only(images, name, platform, names)

    def _manifests(
        self, descriptor: Mapping[str, Any], platform: str, *, depth: int
    ) -> Iterable[Mapping[str, Any]]:
        """The image manifests below a descriptor that may be for the platform."""
        if depth > _MAX_INDEX_DEPTH:
            raise ImageError(f"{self.path} nests image indexes more than {_MAX_INDEX_DEPTH} deep")
        annotations = descriptor.get("annotations")
        if isinstance(annotations, dict) and _ATTESTATION in annotations:
            return
        declared = descriptor.get("platform")
        if isinstance(declared, dict) and _platform_of(declared) != platform:
            return
        kind = descriptor.get("mediaType")
        if kind in _MANIFEST_TYPES:
            yield self._blob_json(descriptor)
        elif kind in _INDEX_TYPES:
            below = _descriptors(self._blob_json(descriptor).get("manifests"), "image index")
            for candidate in sorted(below, key=_variant):
                # An index of many platforms may come with one platform's blobs alone.
                if _blob_name(candidate) not in self._tar:
                    continue
                found = list(self._manifests(candidate, platform, depth=depth + 1))
                if found:
                    yield from found
                    return  # one index is one image: further variants are not asked

    def _oci_manifest(self, names: tuple[str, ...], manifest: Mapping[str, Any]) -> ArchivedImage:
        (config_descriptor,) = _descriptors([manifest.get("config")], "manifest")
        config, diff_ids = self._config(self._blob_json(config_descriptor))
        descriptors = _descriptors(manifest.get("layers"), "manifest")
        self._same_number(descriptors, diff_ids)
        layers = []
        for descriptor, diff_id in zip(descriptors, diff_ids, strict=True):
            member = _blob_name(descriptor)
            media_type = _text(descriptor.get("mediaType"), "mediaType")
            stored = self._tar.size(member)
            if descriptor.get("size") not in (None, stored):
                raise ImageError(
                    f"layer {descriptor['digest']} of {self.path} has {stored} bytes, its"
                    f" descriptor says {descriptor['size']}"
                )
            layers.append(ArchivedLayer(diff_id, media_type, descriptor["digest"], member, stored))
        return ArchivedImage(names, config, tuple(layers))

    # -- both

    def _only(
        self,
        images: Sequence[ArchivedImage],
        name: str | None,
        platform: str,
        names: Sequence[str],
    ) -> ArchivedImage:
        listed = ", ".join(dict.fromkeys(names)) or "without names"
        if len(images) > 1:
            images = _merged(image for image in images if image.config.platform == platform)
        if len(images) == 1:
            return images[0]
        if not images:
            wanted = f"no image called {name!r}" if name is not None else f"no image for {platform}"
            raise ImageError(f"{self.path} holds {wanted} (images: {listed})")
        raise ImageError(f"{self.path} holds several images ({listed}); choose one by its name")

    def _config(self, raw: Mapping[str, Any]) -> tuple[ImageConfig, tuple[str, ...]]:
        root = json_object(raw.get("rootfs"), "rootfs of the image configuration")
        diff_ids = _strings(root.get("diff_ids"), "diff_ids")
        for diff_id in diff_ids:
            try:
                check_digest(diff_id)
            except InvalidArgumentError as error:
                raise ImageError(f"diff ID in the configuration of {self.path}: {error}") from error
            if not diff_id.startswith("sha256:"):
                raise ImageError(f"{self.path}: diff ID {diff_id} is not sha256, the only one used")
        run = raw.get("config")
        run = run if isinstance(run, dict) else {}
        config = ImageConfig(
            os=_text(raw.get("os"), "os"),
            architecture=_text(raw.get("architecture"), "architecture"),
            env=_strings(run.get("Env"), "Env"),
            entrypoint=_strings(run.get("Entrypoint"), "Entrypoint"),
            cmd=_strings(run.get("Cmd"), "Cmd"),
            working_dir=_optional_text(run.get("WorkingDir"), "WorkingDir"),
            user=_optional_text(run.get("User"), "User"),
        )
        return config, diff_ids

    def _same_number(self, layers: Sequence[object], diff_ids: Sequence[str]) -> None:
        if len(layers) != len(diff_ids):
            raise ImageError(
                f"{self.path} lists {len(layers)} layers, its configuration {len(diff_ids)} diff"
                " IDs; the archive is damaged"
            )
        if not layers:
            raise ImageError(f"the image in {self.path} has no layers")

    def _blob_json(self, descriptor: Mapping[str, Any]) -> Mapping[str, Any]:
        return self._tar.json_object(_blob_name(descriptor), digest=descriptor["digest"])


def _merged(images: Iterable[ArchivedImage]) -> list[ArchivedImage]:
    """The images, those that differ in their names alone made one."""
    merged: dict[tuple[object, ...], ArchivedImage] = {}
    for image in images:
        known = merged.get((image.config, image.layers), replace(image, names=()))
        names = tuple(dict.fromkeys(known.names + image.names))
        merged[image.config, image.layers] = replace(image, names=names)
    return list(merged.values())


def _blob_name(descriptor: Mapping[str, Any]) -> str:
    digest: str = descriptor["digest"]  # checked by `_descriptors`
    return "blobs/" + digest.replace(":", "/", 1)


def _names(descriptor: Mapping[str, Any]) -> tuple[str, ...]:
    annotations = descriptor.get("annotations")
    annotations = annotations if isinstance(annotations, dict) else {}
    names = (annotations.get(name) for name in _NAME_ANNOTATIONS)
    return tuple(dict.fromkeys(name for name in names if isinstance(name, str) and name))


def _platform_of(declared: Mapping[str, Any]) -> str:
    return f"{declared.get('os')}/{declared.get('architecture')}"


def _variant(descriptor: Mapping[str, Any]) -> str:
    """The CPU variant, for sorting: the plain platform comes before `v2`."""
    declared = descriptor.get("platform")
    return str(declared.get("variant") or "") if isinstance(declared, dict) else ""


def _is_called(name: str, names: Sequence[str]) -> bool:
    """Whether one of the names is `name`, which may lack registry, repository path and tag."""
    wanted = (name, f"{name}:latest")
    return any(found == text or found.endswith(f"/{text}") for found in names for text in wanted)


def _descriptors(value: object, what: str) -> list[Mapping[str, Any]]:
    if not isinstance(value, list):
        raise ImageError(f"{what} has no list of descriptors")
    descriptors = [json_object(item, "descriptor") for item in value]
    for descriptor in descriptors:
        try:
            check_digest(_text(descriptor.get("digest"), "digest of a descriptor"))
        except InvalidArgumentError as error:
            raise ImageError(f"descriptor in {what}: {error}") from error
    return descriptors


def _text(value: object, what: str) -> str:
    if not isinstance(value, str) or not value:
        raise ImageError(f"{what} is missing; the archive is damaged")
    return value


def _optional_text(value: object, what: str) -> str:
    return _text(value, what) if value else ""


def _strings(value: object, what: str) -> tuple[str, ...]:
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise ImageError(f"{what} is not a list of texts; the archive is damaged")
    return tuple(value)
