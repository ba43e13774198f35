"""`mois view`."""

from __future__ import annotations

from pathlib import Path

from mois.cli.extras import need_extra
from mois.cli.messages import say, say_working
from mois.cli.typed_bundles import served_models


def view(
    image: list[str] | str,
    bundle: list[str] | Path | None = None,
    studies: Path = Path("studies"),
    earlier: Path | None = None,
    port: int = 0,
    no_browser: bool = False,
    subject: str | None = None,
    patient: str | None = None,
    pixel_mm: float | None = None,
    memory_gib: float = 4.0,
    device: str = "auto",
    trust: list[str] | None = None,
) -> None:
    """Show a scan in your browser: click lesions, find the others. No medical device.

    Only this computer reaches the page, and the page loads nothing from the internet. Give the same command again to
    go on where you were.

    Args:
        image: NIfTI, NRRD or MHA file, or a folder that holds one DICOM series. For a model of several channels
            NAME=FILE for each, in any order; the page shows the first channel.
        bundle: The model: folder `bundle` of a training. By default, or with the word shipped, the shipped model, which
            was not trained for your lesions. Several types of lesions: --bundle TYPE=DIR, once for each.
        studies: Folder of the sessions.
        earlier: Folder of a saved session on an earlier scan of the patient. The page then shows this scan beside, and
            says which lesions are the same, new or gone.
        port: Port of the page; 0 takes the same one whenever you open this scan, or a free one if it is taken.
        no_browser: Print the address, and open no browser.
        subject: Name of the scan; by default the name of the file.
        patient: Name of the patient; by default the patient of the earlier scan, or the subject.
        pixel_mm: Pixel size of the shipped model, by default 1.5 mm: the median lesion should be ten pixels across or
            more. A bundle has its own.
        memory_gib: Features that are kept in memory, in GiB.
        device: Device such as cpu or cuda; auto takes an accelerator if there is one.
        trust: Modules of others whose classes the bundle may name, such as my_module.

    Raises:
        ValueError: If the image or the bundle cannot be used, the port is taken, or the extra `serve` is missing.
    """
    need_extra("serve", "fastapi", "uvicorn")
    if earlier is not None and not earlier.is_dir():
        raise ValueError(f"earlier: {earlier} is no folder; give the folder of a saved session on the earlier scan.")
    import webbrowser

    from mois.scans.channels import named_images
    from mois.scans.image_files import name_of
    from mois.scans.volumes import read_images
    from mois.serve.host import Host
    from mois.serve.page import page_app
    from mois.serve.running import bound_socket, scan_socket, serve, token_of
    from mois.session.follow_up import read_time_point

    say_working("loading the model and the scan")
    models = served_models(bundle, pixel_mm, device, trust or ())
    images = named_images([image] if isinstance(image, str) else image, models.first.segmenter.settings.channels)
    name = subject or name_of(next(iter(images.values())))
    before = None if earlier is None else read_time_point(earlier, patient=patient)
    who = patient or (name if before is None else before.volume.patient)
    volume = read_images(images, subject=name, patient=who)
    if before is not None:
        say(f"compares with {before.volume.subject}, an earlier scan of {who} with {before.lesion_count} lesions")
    host = Host(studies, models, memory_gib)
    listening = bound_socket("127.0.0.1", port) if port else scan_socket(host.folder_of(volume).name)
    token = token_of(studies)
    address = f"http://127.0.0.1:{listening.getsockname()[1]}/{token}/"
    say(f"{address}\nCtrl-C ends it; sessions are in {studies}. No medical device: for research.")
    listening.listen()
    if not no_browser:
        webbrowser.open(address)
    serve(page_app(host, volume, before), listening, token, ended=host.close)
