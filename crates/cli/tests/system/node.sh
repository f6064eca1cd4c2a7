# The first process of a node: everything that runs on it descends from this one, and ends with it.
# Told by its environment: NAME, DIR, PROGRAMS, IMAGES. Told by its input that its network is there; when the input
# ends, so does the node.
set -eu
# Sockets, and namespaces that are held by a file, end with the node.
mount -t tmpfs tmpfs /run
read -r _
ip link set lo up
ip address add 10.42.200.1/32 dev eth0
ip link set eth0 up
ip route add 10.42.0.1 dev eth0
ip route add default via 10.42.0.1 dev eth0
echo 1 > /proc/sys/net/ipv4/ip_forward

# A file for each, and none of the caller's variables, least of all its proxies.
start() {
    program=$1
    shift
    env -i PATH="$PATH" HOME="$DIR" "$program" "$@" > "$DIR/${program##*/}.log" 2>&1 &
}
start containerd --config "$DIR/containerd.toml"
until ctr --address "$DIR/containerd.sock" --namespace k8s.io images import "$IMAGES"; do
    sleep 0.2
done > "$DIR/images.log" 2>&1
start "$PROGRAMS/kube-proxy" --config "$DIR/kube-proxy.yaml"
start "$PROGRAMS/kubelet" --config "$DIR/kubelet.yaml" --kubeconfig "$DIR/kubelet.kubeconfig" \
    --root-dir "$DIR/kubelet" --cert-dir "$DIR/pki" --hostname-override "$NAME" --node-ip 10.42.200.1
while read -r _; do :; done
