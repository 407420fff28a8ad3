# systemd-networkd is the one renderer, fed by cloud-init: no interfaces file as well.
export DIB_APT_MINIMAL_CREATE_INTERFACES=${DIB_APT_MINIMAL_CREATE_INTERFACES:-0}
# With 1 the build ends in a plain directory and makes no loop device: for `-t tar`.
# Set it to 0 for dib's own disk formats, with the elements vm and bootloader.
export DIB_IMAGEGEN_TREE_ONLY=${DIB_IMAGEGEN_TREE_ONLY:-1}
