{{/* The version of everything that has none of its own. */}}
{{- define "hawser.version" -}}
{{ .Values.linkerdVersion | default .Chart.AppVersion }}
{{- end }}

{{- define "hawser.trustDomain" -}}
{{ .Values.identityTrustDomain | default .Values.clusterDomain }}
{{- end }}

{{/* An image of the values with its tag. Takes root, image. */}}
{{- define "hawser.image" -}}
{{ .image.name }}:{{ .image.version | default (include "hawser.version" .root) }}
{{- end }}

{{/* Name and version of the image that sets up redirects: the proxy's, unless there is another. */}}
{{- define "hawser.initImage" -}}
{{- $image := .Values.proxyInit.image -}}
{{- if not $image.name }}{{ $image = .Values.proxy.image }}{{ end -}}
{{ include "hawser.image" (dict "root" . "image" $image) }}
{{- end }}

{{/* Labels and annotations of an object of one part. Takes root, part. */}}
{{- define "hawser.metadata" -}}
labels:
  linkerd.io/control-plane-component: {{ .part }}
  linkerd.io/control-plane-ns: {{ .root.Release.Namespace }}
annotations:
  linkerd.io/created-by: linkerd/helm {{ include "hawser.version" .root }}
{{- end }}

{{- define "hawser.selector" -}}
linkerd.io/control-plane-component: {{ .part }}
linkerd.io/control-plane-ns: {{ .root.Release.Namespace }}
{{- end }}

{{/* Limits and requests, without those that are empty; nothing if all are. */}}
{{- define "hawser.resources" -}}
{{- $limits := dict }}
{{- $requests := dict }}
{{- range $name, $resource := . }}
{{- with $resource.limit }}{{ $_ := set $limits $name (toString .) }}{{ end }}
{{- with $resource.request }}{{ $_ := set $requests $name (toString .) }}{{ end }}
{{- end }}
{{- if or $limits $requests }}
resources:
  {{- with $limits }}
  limits: {{ toJson . }}
  {{- end }}
  {{- with $requests }}
  requests: {{ toJson . }}
  {{- end }}
{{- end }}
{{- end }}

{{- define "hawser.restricted" -}}
allowPrivilegeEscalation: false
capabilities:
  drop: [ALL]
  {{- if .mark }}
  # Marking sockets takes a capability.
  add: [NET_ADMIN]
  {{- end }}
readOnlyRootFilesystem: true
runAsNonRoot: true
runAsUser: {{ .uid | int64 }}
{{- if ge (.gid | int64) 0 }}
runAsGroup: {{ .gid | int64 }}
{{- end }}
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{/* A Deployment's replicas: how many, how they are replaced, and where they may be. Takes root, part. */}}
{{- define "hawser.affinity" -}}
podAntiAffinity:
  preferredDuringSchedulingIgnoredDuringExecution:
  - weight: 100
    podAffinityTerm:
      labelSelector:
        matchLabels:
          {{- include "hawser.selector" . | nindent 10 }}
      topologyKey: topology.kubernetes.io/zone
  requiredDuringSchedulingIgnoredDuringExecution:
  - labelSelector:
      matchLabels:
        {{- include "hawser.selector" . | nindent 8 }}
    topologyKey: kubernetes.io/hostname
{{- end }}

{{- define "hawser.budget" -}}
{{- if .root.Values.enablePodDisruptionBudget }}
---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata:
  name: linkerd-{{ .part }}
  namespace: {{ .root.Release.Namespace }}
  {{- include "hawser.metadata" . | nindent 2 }}
spec:
  maxUnavailable: 1
  selector:
    matchLabels:
      {{- include "hawser.selector" . | nindent 6 }}
{{- end }}
{{- end }}

{{/* Account and what it may do. Takes root, part, rules. */}}
{{- define "hawser.account" -}}
{{- $namespace := .root.Release.Namespace -}}
---
apiVersion: v1
kind: ServiceAccount
metadata:
  name: linkerd-{{ .part }}
  namespace: {{ $namespace }}
  {{- include "hawser.metadata" . | nindent 2 }}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata:
  name: linkerd-{{ $namespace }}-{{ .part }}
  {{- include "hawser.metadata" . | nindent 2 }}
rules:
{{ .rules }}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata:
  name: linkerd-{{ $namespace }}-{{ .part }}
  {{- include "hawser.metadata" . | nindent 2 }}
roleRef:
  apiGroup: rbac.authorization.k8s.io
  kind: ClusterRole
  name: linkerd-{{ $namespace }}-{{ .part }}
subjects:
- kind: ServiceAccount
  name: linkerd-{{ .part }}
  namespace: {{ $namespace }}
{{- end }}

{{/* A Service of one port. Takes root, part, name, port, and target, portName, headless where they differ. */}}
{{- define "hawser.service" -}}
---
apiVersion: v1
kind: Service
metadata:
  name: {{ .name }}
  namespace: {{ .root.Release.Namespace }}
  {{- include "hawser.metadata" . | nindent 2 }}
spec:
  {{- if .headless }}
  clusterIP: None
  {{- else }}
  type: ClusterIP
  {{- end }}
  selector:
    linkerd.io/control-plane-component: {{ .part }}
  ports:
  - name: {{ .portName | default "grpc" }}
    port: {{ .port }}
    targetPort: {{ .target | default .port }}
    protocol: TCP
{{- end }}

{{/* A program of a part. Takes root, name, prefix, port, portName, admin, args, mounts, resources. */}}
{{- define "hawser.container" -}}
{{- $values := .root.Values -}}
- name: {{ .name }}
  image: {{ $values.controllerImage }}:{{ $values.controllerImageVersion | default (include "hawser.version" .root) }}
  imagePullPolicy: {{ $values.imagePullPolicy }}
  args:
  - {{ .command | default .name }}
  - --controller-namespace={{ .root.Release.Namespace }}
  - --log-level={{ $values.controllerLogLevel }}
  - --log-format={{ $values.controllerLogFormat }}
  {{- range .args }}
  - {{ quote . }}
  {{- end }}
  ports:
  - name: {{ .portName }}
    containerPort: {{ .port }}
    protocol: TCP
  - name: {{ .prefix }}-admin
    containerPort: {{ .admin }}
    protocol: TCP
  livenessProbe:
    httpGet: { path: /live, port: {{ .admin }} }
    initialDelaySeconds: 10
    timeoutSeconds: 1
  readinessProbe:
    httpGet: { path: /ready, port: {{ .admin }} }
    # Every second: all other pods of the mesh wait for these.
    periodSeconds: 1
    failureThreshold: 7
    timeoutSeconds: 1
  securityContext:
    {{- include "hawser.restricted" (dict "uid" $values.controllerUID "gid" $values.controllerGID) | nindent 4 }}
  terminationMessagePolicy: FallbackToLogsOnError
  {{- $own := include "hawser.resources" .resources }}
  {{- if $own | trim }}
  {{- $own | nindent 2 }}
  {{- else }}
  {{- include "hawser.resources" $values.controllerResources | nindent 2 }}
  {{- end }}
  {{- with .mounts }}
  volumeMounts:
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end }}

{{/* What destination and policy must agree on. */}}
{{- define "hawser.aboutMesh" -}}
- --cluster-domain={{ .Values.clusterDomain }}
- --identity-trust-domain={{ include "hawser.trustDomain" . }}
- --cluster-networks={{ .Values.clusterNetworks }}
- --default-opaque-ports={{ .Values.proxy.opaquePorts }}
- --default-policy={{ .Values.proxy.defaultInboundPolicy }}
- --probe-networks={{ join "," .Values.policyController.probeNetworks }}
- --enable-h2-upgrade={{ .Values.enableH2Upgrade }}
- --outbound-transport-mode={{ .Values.proxy.outboundTransportMode }}
- --gateway-export-label={{ .Values.gatewayExports.label }}
- --gateway-export-values={{ join "," .Values.gatewayExports.values }}
{{- if .Values.gatewayExports.unrestricted }}
- --gateway-exports-unrestricted
{{- end }}
{{- end }}

{{/* A part of the control plane with its proxy. Takes root, part, inboundPorts, containers, volumes, and skipInbound. */}}
{{- define "hawser.deployment" -}}
{{- $values := .root.Values -}}
---
apiVersion: apps/v1
kind: Deployment
metadata:
  name: linkerd-{{ .part }}
  namespace: {{ .root.Release.Namespace }}
  {{- include "hawser.metadata" . | nindent 2 }}
spec:
  replicas: {{ $values.controllerReplicas | int }}
  {{- if $values.enablePodAntiAffinity }}
  strategy:
    rollingUpdate:
      maxUnavailable: 1
  {{- end }}
  selector:
    matchLabels:
      {{- include "hawser.selector" . | nindent 6 }}
  template:
    metadata:
      labels:
        {{- include "hawser.selector" . | nindent 8 }}
        linkerd.io/proxy-deployment: linkerd-{{ .part }}
        linkerd.io/workload-ns: {{ .root.Release.Namespace }}
        {{- with $values.podLabels }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      annotations:
        # Proxies without a certificate yet must reach identity, and the API server has none at all.
        config.linkerd.io/default-inbound-policy: all-unauthenticated
        {{- with .skipInbound }}
        config.linkerd.io/skip-inbound-ports: {{ quote . }}
        {{- end }}
        linkerd.io/created-by: linkerd/helm {{ include "hawser.version" .root }}
        linkerd.io/proxy-version: {{ $values.proxy.image.version | default (include "hawser.version" .root) }}
        {{- with $values.podAnnotations }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
    spec:
      serviceAccountName: linkerd-{{ .part }}
      {{- if $values.enablePodAntiAffinity }}
      affinity:
        {{- include "hawser.affinity" . | nindent 8 }}
      {{- end }}
      {{- with $values.nodeSelector }}
      nodeSelector: {{ toJson . }}
      {{- end }}
      {{- with $values.tolerations }}
      tolerations:
      {{- toYaml . | nindent 6 }}
      {{- end }}
      {{- with $values.priorityClassName }}
      priorityClassName: {{ . }}
      {{- end }}
      {{- with $values.imagePullSecrets }}
      imagePullSecrets:
      {{- toYaml . | nindent 6 }}
      {{- end }}
      securityContext:
        seccompProfile:
          type: RuntimeDefault
      initContainers:
      {{- include "hawser.init" . | nindent 6 }}
      containers:
      {{- include "hawser.proxy" . | nindent 6 }}
      {{- .containers | nindent 6 }}
      volumes:
      {{- with .volumes }}
      {{- toYaml . | nindent 6 }}
      {{- end }}
      {{- if not $values.cniEnabled }}
      - name: linkerd-proxy-init-xtables-lock
        emptyDir: {}
      {{- end }}
      - name: linkerd-identity-token
        projected:
          sources:
          - serviceAccountToken:
              audience: identity.l5d.io
              expirationSeconds: 86400
              path: linkerd-identity-token
      - name: linkerd-identity-end-entity
        emptyDir:
          medium: Memory
{{- include "hawser.budget" . }}
{{- end }}
