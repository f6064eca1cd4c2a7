{{/* The redirect into the proxy. Takes root, and skipInbound. */}}
{{- define "hawser.init" -}}
{{- $values := .root.Values -}}
{{- $proxy := $values.proxy -}}
{{- $init := $values.proxyInit -}}
{{- if $values.cniEnabled -}}
- name: linkerd-network-validator
  image: {{ include "hawser.initImage" .root }}
  imagePullPolicy: {{ $proxy.image.pullPolicy | default $values.imagePullPolicy }}
  command: [hawser-proxy-init]
  args: [--validate, --outgoing-proxy-port, {{ $proxy.ports.outbound | int | toString | quote }}]
  securityContext:
    {{- include "hawser.restricted" (dict "uid" 65534 "gid" 65534) | nindent 4 }}
  terminationMessagePolicy: FallbackToLogsOnError
{{- else -}}
- name: linkerd-init
  image: {{ include "hawser.initImage" .root }}
  imagePullPolicy: {{ $init.image.pullPolicy | default $values.imagePullPolicy }}
  command:
  {{- if hasSuffix "linkerd/proxy" $proxy.image.name }}
  - /usr/lib/linkerd/linkerd2-proxy-init
  {{- else }}
  - hawser-proxy-init
  {{- end }}
  args:
  - --incoming-proxy-port
  - {{ $proxy.ports.inbound | int | toString | quote }}
  - --outgoing-proxy-port
  - {{ $proxy.ports.outbound | int | toString | quote }}
  - --proxy-uid
  - {{ $proxy.uid | int64 | toString | quote }}
  {{- if ge ($proxy.gid | int64) 0 }}
  - --proxy-gid
  - {{ $proxy.gid | int64 | toString | quote }}
  {{- end }}
  {{- if $proxy.mark }}
  - --proxy-mark
  - {{ $proxy.mark | int64 | toString | quote }}
  {{- end }}
  - --inbound-ports-to-ignore
  - {{ list ($proxy.ports.control | int) ($proxy.ports.admin | int) (.skipInbound | default $init.ignoreInboundPorts) | join "," | trimSuffix "," | quote }}
  - --outbound-ports-to-ignore
  - {{ list $init.kubeAPIServerPorts $init.ignoreOutboundPorts | join "," | trimAll "," | quote }}
  {{- if $init.closeWaitTimeoutSecs }}
  - --timeout-close-wait-secs
  - {{ $init.closeWaitTimeoutSecs | int64 | toString | quote }}
  {{- end }}
  {{- with $init.skipSubnets }}
  - --subnets-to-ignore
  - {{ quote . }}
  {{- end }}
  {{- with $init.logFormat }}
  - --log-format
  - {{ quote . }}
  {{- end }}
  {{- with $init.logLevel }}
  - --log-level
  - {{ quote . }}
  {{- end }}
  {{- if $values.disableIPv6 }}
  - --ipv6=false
  {{- end }}
  securityContext:
    allowPrivilegeEscalation: {{ $init.privileged }}
    capabilities:
      add: [NET_ADMIN, NET_RAW]
    privileged: {{ $init.privileged }}
    readOnlyRootFilesystem: true
    {{- if or $init.runAsRoot $init.privileged $init.closeWaitTimeoutSecs }}
    runAsNonRoot: false
    runAsUser: 0
    runAsGroup: 0
    {{- else }}
    runAsNonRoot: true
    runAsUser: {{ $init.runAsUser | int64 }}
    runAsGroup: {{ $init.runAsGroup | int64 }}
    {{- end }}
    seccompProfile:
      type: RuntimeDefault
  terminationMessagePolicy: FallbackToLogsOnError
  volumeMounts:
  - name: linkerd-proxy-init-xtables-lock
    mountPath: /run
{{- end }}
{{- end }}

{{/* How many cores a proxy may use: what it is told, or its limit rounded up; nothing if there is neither. */}}
{{- define "hawser.cores" -}}
{{- $limit := toString .resources.cpu.limit -}}
{{- if .cores -}}
{{ .cores | int }}
{{- else if hasSuffix "m" $limit -}}
{{ divf (trimSuffix "m" $limit | float64) 1000 | ceil | int }}
{{- else if $limit -}}
{{ $limit | float64 | ceil | int }}
{{- end }}
{{- end }}

{{/* The proxy of a part of the control plane. Takes root, part, inboundPorts. */}}
{{- define "hawser.proxy" -}}
{{- $values := .root.Values -}}
{{- $proxy := $values.proxy -}}
{{- $ns := .root.Release.Namespace -}}
{{- $services := printf "%s.svc.%s." $ns $values.clusterDomain -}}
{{- $identities := printf "serviceaccount.identity.%s.%s" $ns (include "hawser.trustDomain" .root) -}}
{{- $any := ternary "0.0.0.0" "[::]" $values.disableIPv6 -}}
- name: linkerd-proxy
  image: {{ include "hawser.image" (dict "root" .root "image" $proxy.image) }}
  imagePullPolicy: {{ $proxy.image.pullPolicy | default $values.imagePullPolicy }}
  env:
  - { name: _pod_name, valueFrom: { fieldRef: { fieldPath: metadata.name } } }
  - { name: _pod_ns, valueFrom: { fieldRef: { fieldPath: metadata.namespace } } }
  - { name: _pod_uid, valueFrom: { fieldRef: { fieldPath: metadata.uid } } }
  - { name: _pod_nodeName, valueFrom: { fieldRef: { fieldPath: spec.nodeName } } }
  - { name: _pod_sa, valueFrom: { fieldRef: { fieldPath: spec.serviceAccountName } } }
  - name: LINKERD2_PROXY_SHUTDOWN_ENDPOINT_ENABLED
    value: {{ $proxy.enableShutdownEndpoint | quote }}
  - name: LINKERD2_PROXY_LOG
    value: {{ printf "%s,[{headers}]=off,[{request}]=off" $proxy.logLevel | quote }}
  - name: LINKERD2_PROXY_LOG_FORMAT
    value: {{ $proxy.logFormat | quote }}
  {{- with $proxy.accessLog }}
  - name: LINKERD2_PROXY_ACCESS_LOG
    value: {{ quote . }}
  {{- end }}
  - name: LINKERD2_PROXY_DESTINATION_SVC_ADDR
    value: {{ ternary "127.0.0.1:8086" (printf "linkerd-dst-headless.%s:8086" $services) (eq .part "destination") }}
  - name: LINKERD2_PROXY_DESTINATION_SVC_NAME
    value: linkerd-destination.{{ $ns }}.{{ $identities }}
  - name: LINKERD2_PROXY_POLICY_SVC_ADDR
    value: {{ ternary "127.0.0.1:8090" (printf "linkerd-policy.%s:8090" $services) (eq .part "destination") }}
  - name: LINKERD2_PROXY_POLICY_SVC_NAME
    value: linkerd-destination.{{ $ns }}.{{ $identities }}
  - { name: LINKERD2_PROXY_CONTROL_STREAM_INITIAL_TIMEOUT, value: 3s }
  - { name: LINKERD2_PROXY_CONTROL_STREAM_IDLE_TIMEOUT, value: 5m }
  - { name: LINKERD2_PROXY_CONTROL_STREAM_LIFETIME, value: 1h }
  - { name: LINKERD2_PROXY_IDENTITY_DIR, value: /var/run/linkerd/identity/end-entity }
  - name: LINKERD2_PROXY_IDENTITY_TRUST_ANCHORS
    valueFrom: { configMapKeyRef: { name: linkerd-identity-trust-roots, key: ca-bundle.crt } }
  - { name: LINKERD2_PROXY_IDENTITY_TOKEN_FILE, value: /var/run/secrets/tokens/linkerd-identity-token }
  - name: LINKERD2_PROXY_IDENTITY_SVC_ADDR
    value: {{ ternary "127.0.0.1:8080" (printf "linkerd-identity-headless.%s:8080" $services) (eq .part "identity") }}
  - name: LINKERD2_PROXY_IDENTITY_LOCAL_NAME
    value: $(_pod_sa).$(_pod_ns).{{ $identities }}
  - name: LINKERD2_PROXY_IDENTITY_SVC_NAME
    value: linkerd-identity.{{ $ns }}.{{ $identities }}
  - name: LINKERD2_PROXY_POLICY_WORKLOAD
    value: '{"ns":"$(_pod_ns)", "pod":"$(_pod_name)"}'
  - name: LINKERD2_PROXY_DESTINATION_CONTEXT
    value: '{"ns":"$(_pod_ns)", "nodeName":"$(_pod_nodeName)", "pod":"$(_pod_name)"}'
  - { name: LINKERD2_PROXY_INBOUND_DEFAULT_POLICY, value: all-unauthenticated }
  - name: LINKERD2_PROXY_POLICY_CLUSTER_NETWORKS
    value: {{ $values.clusterNetworks | quote }}
  - name: LINKERD2_PROXY_DESTINATION_PROFILE_NETWORKS
    value: {{ $values.clusterNetworks | quote }}
  - name: LINKERD2_PROXY_DESTINATION_PROFILE_SUFFIXES
    value: {{ ternary "." (printf "svc.%s." $values.clusterDomain) $proxy.enableExternalProfiles }}
  {{- if $proxy.isGateway }}
  - name: LINKERD2_PROXY_INBOUND_GATEWAY_SUFFIXES
    value: svc.{{ $values.clusterDomain }}.
  {{- end }}
  {{- if $proxy.isIngress }}
  - { name: LINKERD2_PROXY_INGRESS_MODE, value: "true" }
  {{- end }}
  - name: LINKERD2_PROXY_CONTROL_LISTEN_ADDR
    value: {{ printf "%s:%d" $any ($proxy.ports.control | int) | quote }}
  - name: LINKERD2_PROXY_ADMIN_LISTEN_ADDR
    value: {{ printf "%s:%d" $any ($proxy.ports.admin | int) | quote }}
  - name: LINKERD2_PROXY_INBOUND_LISTEN_ADDR
    value: {{ printf "%s:%d" $any ($proxy.ports.inbound | int) | quote }}
  - name: LINKERD2_PROXY_OUTBOUND_LISTEN_ADDRS
    {{- $outbound := $proxy.ports.outbound | int }}
    value: {{ ternary (printf "127.0.0.1:%d" $outbound) (printf "127.0.0.1:%d,[::1]:%d" $outbound $outbound) $values.disableIPv6 | quote }}
  - { name: LINKERD2_PROXY_INBOUND_IPS, valueFrom: { fieldRef: { fieldPath: status.podIPs } } }
  - name: LINKERD2_PROXY_INBOUND_PORTS
    {{- $ports := .inboundPorts }}
    {{- if $proxy.isGateway }}{{ $ports = printf "%d,%s" ($proxy.ports.inbound | int) $ports }}{{ end }}
    value: {{ $proxy.podInboundPorts | default $ports | quote }}
  {{- with $proxy.requireIdentityOnInboundPorts }}
  - name: LINKERD2_PROXY_INBOUND_PORTS_REQUIRE_IDENTITY
    value: {{ quote . }}
  {{- end }}
  {{- if $proxy.disableInboundProtocolDetectTimeout }}
  - { name: LINKERD2_PROXY_INBOUND_DETECT_TIMEOUT, value: 365d }
  {{- end }}
  {{- if $proxy.disableOutboundProtocolDetectTimeout }}
  - { name: LINKERD2_PROXY_OUTBOUND_DETECT_TIMEOUT, value: 365d }
  {{- end }}
  - name: LINKERD2_PROXY_INBOUND_CONNECT_TIMEOUT
    value: {{ $proxy.inboundConnectTimeout | quote }}
  - name: LINKERD2_PROXY_OUTBOUND_CONNECT_TIMEOUT
    value: {{ $proxy.outboundConnectTimeout | quote }}
  - name: LINKERD2_PROXY_OUTBOUND_DISCOVERY_IDLE_TIMEOUT
    value: {{ $proxy.outboundDiscoveryCacheUnusedTimeout | quote }}
  - name: LINKERD2_PROXY_INBOUND_DISCOVERY_IDLE_TIMEOUT
    value: {{ $proxy.inboundDiscoveryCacheUnusedTimeout | quote }}
  {{- range list "INBOUND_ACCEPT" "INBOUND_CONNECT" "OUTBOUND_ACCEPT" "OUTBOUND_CONNECT" }}
  - { name: LINKERD2_PROXY_{{ . }}_KEEPALIVE, value: 10000ms }
  - { name: LINKERD2_PROXY_{{ . }}_USER_TIMEOUT, value: 30s }
  {{- end }}
  {{- range list "INBOUND" "OUTBOUND" }}
  - { name: LINKERD2_PROXY_{{ . }}_SERVER_HTTP2_KEEP_ALIVE_INTERVAL, value: 10s }
  - { name: LINKERD2_PROXY_{{ . }}_SERVER_HTTP2_KEEP_ALIVE_TIMEOUT, value: 3s }
  {{- end }}
  {{- with $proxy.shutdownGracePeriod }}
  - name: LINKERD2_PROXY_SHUTDOWN_GRACE_PERIOD
    value: {{ quote . }}
  {{- end }}
  {{- with include "hawser.cores" $proxy }}
  - name: LINKERD2_PROXY_CORES_MAX
    value: {{ quote . }}
  {{- end }}
  {{- if $proxy.mark }}
  - name: HAWSER_PROXY_MARK
    value: {{ $proxy.mark | int64 | toString | quote }}
  {{- end }}
  {{- with $proxy.tracing }}
  {{- if .enabled }}
  {{- $account := .collector.meshIdentity }}
  {{- if and .collector.endpoint (not (regexMatch "^.+:[0-9]+$" .collector.endpoint)) }}
  {{- fail (printf "proxy.tracing.collector.endpoint is %q; it must be a name and a port" .collector.endpoint) }}
  {{- end }}
  - name: LINKERD2_PROXY_TRACE_COLLECTOR_SVC_ADDR
    value: {{ required "proxy.tracing.collector.endpoint is missing" .collector.endpoint | quote }}
  - name: LINKERD2_PROXY_TRACE_COLLECTOR_SVC_NAME
    value: {{ required "proxy.tracing.collector.meshIdentity.serviceAccountName is missing" $account.serviceAccountName }}.{{ required "proxy.tracing.collector.meshIdentity.namespace is missing" $account.namespace }}.{{ $identities }}
  - { name: LINKERD2_PROXY_TRACE_PROTOCOL, value: opentelemetry }
  - name: LINKERD2_PROXY_TRACE_SERVICE_NAME
    value: {{ .traceServiceName | quote }}
  {{- $labels := list }}
  {{- range $name, $value := .labels }}{{ $labels = append $labels (printf "%s=%s" $name $value) }}{{ end }}
  {{- with join "," $labels }}
  - name: OTEL_RESOURCE_ATTRIBUTES
    value: {{ quote . }}
  {{- end }}
  {{- end }}
  {{- end }}
  {{- with $proxy.additionalEnv }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
  ports:
  - name: linkerd-proxy
    containerPort: {{ $proxy.ports.inbound | int }}
    protocol: TCP
  - name: linkerd-admin
    containerPort: {{ $proxy.ports.admin | int }}
    protocol: TCP
  livenessProbe:
    httpGet: { path: /live, port: {{ $proxy.ports.admin | int }} }
    initialDelaySeconds: 10
    timeoutSeconds: 1
  readinessProbe:
    httpGet: { path: /ready, port: {{ $proxy.ports.admin | int }} }
    periodSeconds: 1
    failureThreshold: 10
    timeoutSeconds: 1
  {{- if gt ($proxy.waitBeforeExitSeconds | int) 0 }}
  lifecycle:
    preStop:
      sleep:
        seconds: {{ $proxy.waitBeforeExitSeconds | int }}
  {{- end }}
  securityContext:
    {{- include "hawser.restricted" (dict "uid" $proxy.uid "gid" $proxy.gid "mark" $proxy.mark) | nindent 4 }}
  terminationMessagePolicy: FallbackToLogsOnError
  {{- include "hawser.resources" $proxy.resources | nindent 2 }}
  volumeMounts:
  - name: linkerd-identity-end-entity
    mountPath: /var/run/linkerd/identity/end-entity
  - name: linkerd-identity-token
    mountPath: /var/run/secrets/tokens
{{- end }}
